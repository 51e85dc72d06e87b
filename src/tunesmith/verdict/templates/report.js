"use strict";
// Searching the test rows. Everything shown is put in as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("row-data").textContent);
  const part = (id) => document.getElementById(id);
  const [text, candidate, result, group, order] = ["text", "candidate", "result", "group", "order"].map((id) => part(`f-${id}`));
  const PAGE = 20;
  const RIGHT = 1 - 1e-9;
  // A row is [number, id, question, expected, said by candidate]; what was said is [answer, score, flags, how sure] or null.
  const SCORE = 1, SURE = 3, UNREADABLE = 1, CUT = 2;
  let found = [];
  let page = 0;

  const node = (name, css, ...inside) => {
    const made = document.createElement(name);
    if (css) made.className = css;
    made.append(...inside);
    return made;
  };
  const option = (value, label) => {
    const made = node("option", "", label);
    made.value = value;
    return made;
  };
  const counted = (number) => number.toLocaleString("en");
  const capital = (name) => name.charAt(0).toUpperCase() + name.slice(1);
  const right = (said) => said !== null && said[SCORE] >= RIGHT;

  // What is looked for.
  const chosen = () => Number(candidate.value);
  const beside = () => (chosen() !== 0 ? 0 : data.candidates.length > 1 ? 1 : -1);
  const KINDS = {
    all: () => true,
    right: (row) => right(row[4][chosen()]),
    wrong: (row) => !right(row[4][chosen()]),
    unreadable: (row) => Boolean(row[4][chosen()]?.[2] & UNREADABLE),
    cut: (row) => Boolean(row[4][chosen()]?.[2] & CUT),
    lost: (row) => !right(row[4][chosen()]) && right(row[4][beside()]),
    won: (row) => right(row[4][chosen()]) && !right(row[4][beside()]),
  };

  const haystacks = data.rows.map(() => null);
  const haystack = (place) => {
    if (haystacks[place] === null) {
      const [, id, question, expected, answers] = data.rows[place];
      const texts = [id, question, expected, ...answers.filter(Boolean).map((said) => said[0])];
      haystacks[place] = [...new Set(texts)].map((at) => data.texts[at]).join("\n").toLowerCase();
    }
    return haystacks[place];
  };
  const words = () => text.value.toLowerCase().split(/\s+/).filter(Boolean);

  function search() {
    const wanted = words();
    const places = group.value === "" ? data.rows.map((_, place) => place) : [...data.groups[group.value][2]];
    const kind = KINDS[result.value];
    found = places.filter((at) => kind(data.rows[at]) && wanted.every((word) => haystack(at).includes(word)));
    if (order.value !== "given") {
      const sign = order.value === "low" ? 1 : -1;
      const by = order.value === "sure" ? SURE : SCORE;
      const value = (at) => data.rows[at][4][chosen()]?.[by] ?? -1;
      found.sort((a, b) => sign * (value(a) - value(b)) || a - b);
    }
    page = 0;
    show();
  }

  // What is shown.
  function show() {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const first = page * PAGE;
    const wanted = words();
    part("f-found").replaceChildren(...found.slice(first, first + PAGE).map((at) => card(data.rows[at], wanted)));
    part("f-found").start = first + 1;
    let says = `${counted(found.length)} of ${counted(data.rows.length)} rows`;
    if (group.value !== "") {
      const [, name, places, all] = data.groups[group.value];
      says += `, within ${name}`;
      if (places.length < all) says += ` (${counted(places.length)} of its ${counted(all)} rows are in this page)`;
    }
    part("f-status").textContent = `${says}.`;
    part("f-page").textContent = `page ${counted(page + 1)} of ${counted(pages)}`;
    part("f-back").disabled = page === 0;
    part("f-on").disabled = page + 1 >= pages;
    document.querySelector(".pager").hidden = pages === 1;
    // A box that scrolls must be reached by keyboard.
    for (const box of part("f-found").querySelectorAll(".box")) {
      if (box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    }
  }

  function card(row, wanted) {
    const [number, id, question, expected, answers] = row;
    const [main, other] = [chosen(), beside()];
    const header = node("header", "", node("h3", "", `Row ${counted(number)}`), node("code", "", data.texts[id]));
    const asked = node("div", "asked", boxed(data.texts[question], wanted));
    const shown = node("div", "answers", told("Expected", data.texts[expected], null, wanted));
    shown.append(saidBy(main, answers[main], wanted));
    if (other >= 0) shown.append(saidBy(other, answers[other], wanted));
    const item = node("li", "mistake", header, asked, shown);
    const rest = answers.map((said, at) => [at, said]).filter(([at]) => at !== main && at !== other);
    if (rest.length) {
      const more = node("details", "others", node("summary", "", `${rest.length} other answers`));
      more.append(node("div", "answers", ...rest.map(([at, said]) => saidBy(at, said, wanted))));
      item.append(more);
    }
    return item;
  }

  function saidBy(at, said, wanted) {
    const name = capital(data.candidates[at]);
    return said === null ? told(name, "", ["none", "not asked"], wanted) : told(name, data.texts[said[0]], flag(said), wanted, remarks(said));
  }

  function flag(said) {
    if (said[SCORE] === null) return ["none", "no score"];
    if (right(said)) return ["right", "right"];
    if (data.binary || said[SCORE] === 0) return ["wrong", "wrong"];
    return ["info", `${(100 * said[SCORE]).toFixed(1)} %`];
  }

  function remarks(said) {
    const made = said.length > SURE ? [`${(100 * said[SURE]).toFixed(1)} % sure`] : [];
    if (said[2] & UNREADABLE) made.push("could not be read");
    if (said[2] & CUT) made.push("cut at the token limit");
    return made.join(", ");
  }

  function told(name, answer, marked, wanted, remark = "") {
    const title = node("h4", "", node("span", "", name));
    if (marked) title.append(node("span", `flag ${marked[0]}`, marked[1]));
    const block = node("div", "", title, answer.trim() ? boxed(answer, wanted) : node("p", "none", "empty"));
    if (remark) block.append(node("small", "", remark));
    return block;
  }

  function boxed(content, wanted) {
    const box = node("pre", "box");
    const lower = content.toLowerCase();
    // In a few scripts small letters are longer than capitals; then places do not match, and nothing is marked.
    if (!wanted.length || lower.length !== content.length) {
      box.textContent = content;
      return box;
    }
    let at = 0;
    while (at < content.length) {
      let [next, length] = [-1, 0];
      for (const word of wanted) {
        const place = lower.indexOf(word, at);
        if (place >= 0 && (next < 0 || place < next)) [next, length] = [place, word.length];
      }
      if (next < 0) break;
      box.append(content.slice(at, next), node("mark", "", content.slice(next, next + length)));
      at = next + length;
    }
    box.append(content.slice(at));
    return box;
  }

  // The controls.
  function fill() {
    candidate.replaceChildren(...data.candidates.map((name, at) => option(at, name)));
    const kinds = new Map();
    for (const [at, [kind, name, places]] of data.groups.entries()) {
      if (!kinds.has(kind)) kinds.set(kind, node("optgroup", ""));
      kinds.get(kind).label = kind;
      kinds.get(kind).append(option(at, `${name} (${counted(places.length)})`));
    }
    group.replaceChildren(option("", "all rows"), ...kinds.values());
    group.parentElement.hidden = data.groups.length === 0;
    choices();
  }

  // What can be asked depends on whose answers are looked at.
  function choices() {
    const kept = result.value || "all";
    const other = beside() >= 0 ? data.candidates[beside()] : null;
    const wrong = data.binary ? "wrong" : "not entirely right";
    result.replaceChildren(option("all", "all"), option("right", "right"), option("wrong", wrong));
    result.append(option("unreadable", "could not be read"), option("cut", "cut at the token limit"));
    if (other !== null) {
      result.append(option("lost", `${wrong}, ${other} right`), option("won", `right, ${other} ${wrong}`));
    }
    result.value = [...result.options].some((one) => one.value === kept) ? kept : "all";
    const orders = [["given", "as in the test set"], ["low", "lowest score first"], ["high", "highest score first"]];
    if (data.rows.some((row) => row[4][chosen()]?.length > SURE)) orders.push(["sure", "surest first"]);
    const wanted = order.value;
    order.replaceChildren(...orders.map(([value, label]) => option(value, label)));
    order.value = orders.some(([value]) => value === wanted) ? wanted : "given";
  }

  function clear() {
    text.value = "";
    for (const select of [candidate, result, group, order]) select.selectedIndex = 0;
    choices();
    search();
  }

  function turn(step) {
    page += step;
    show();
    part("f-status").scrollIntoView({ block: "center" });
    const used = part(step > 0 ? "f-on" : "f-back");
    if (used.disabled) part(step > 0 ? "f-back" : "f-on").focus();
  }

  let waiting = 0;
  text.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  candidate.addEventListener("change", () => {
    choices();
    search();
  });
  for (const select of [result, group, order]) select.addEventListener("change", search);
  part("f-clear").addEventListener("click", clear);
  part("f-back").addEventListener("click", () => turn(-1));
  part("f-on").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("a.find")) {
    link.addEventListener("click", () => {
      clear();
      group.value = link.dataset.group;
      search(); // the heading above is what the link leads to, and gets the focus
    });
  }

  fill();
  search();
  document.documentElement.classList.add("scripted");
  document.querySelector(".finder").hidden = false;
  show();
})();

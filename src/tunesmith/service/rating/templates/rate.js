"use strict";
(() => {
  const token = new URLSearchParams(location.search).get("token") || "";
  const $ = (id) => document.getElementById(id);
  const buttons = [...document.querySelectorAll("[data-choice]")];
  const keys = { 1: "left", 2: "right", 3: "tie", 4: "both_bad" };
  const state = { rater: "", pair: null, shown: 0, busy: false, failed: null };

  async function ask(path, body) {
    if (state.busy) return;
    state.busy = true;
    enable(false);
    try {
      const response = await fetch(path, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Rating-Token": token },
        body: JSON.stringify({ rater: state.rater, ...body }),
      });
      const answer = await response.json();
      if (!response.ok) throw new Error(answer.error);
      state.failed = null;
      $("problem").hidden = true;
      show(answer, path);
    } catch (error) {
      // What was not kept must not look as if it were: the same request can be sent again.
      state.failed = () => ask(path, body);
      const lost = error instanceof TypeError || error instanceof SyntaxError;
      $("told").textContent = lost
        ? "The server does not answer; this was not kept. Is `tunesmith rate` still running?"
        : `This was not kept: ${error.message}.`;
      $("problem").hidden = false;
    } finally {
      state.busy = false;
      enable(true);
    }
  }

  function show(answer, path) {
    const { rated, total } = answer.progress;
    state.pair = answer.pair;
    $("start").hidden = true;
    $("rating").hidden = !answer.pair;
    $("done").hidden = Boolean(answer.pair);
    $("progress").hidden = false;
    $("who").hidden = false;
    $("who").textContent = state.rater;
    $("bar").max = Math.max(total, 1);
    $("bar").value = rated;
    $("count").textContent = `${rated} of ${total} rated`;
    $("back").disabled = $("back-end").disabled = rated === 0;
    if (!answer.pair) {
      $("end").focus();
      return;
    }
    fill("question", answer.question);
    fill("left", answer.left);
    fill("right", answer.right);
    fill("expected", answer.reference);
    $("reference").hidden = !answer.reference;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.choice === answer.before));
    const saved = path === "/rate" ? "Saved. " : "";
    $("status").textContent = `${saved}${rated} of ${total} rated.${answer.before ? " You rated this one before." : ""}`;
    state.shown = performance.now();
    scrollTo(0, 0);
    document.querySelector(".asked").scrollTop = 0;
    $("place").focus({ preventScroll: true });
  }

  function fill(id, text) {
    const empty = !text.trim();
    $(id).textContent = empty ? "empty" : text;
    $(id).classList.toggle("empty", empty);
  }

  function enable(on) {
    for (const button of buttons) button.disabled = !on;
  }

  function choose(choice) {
    if (!state.pair || state.busy) return;
    ask("/rate", { pair: state.pair, choice, seconds: (performance.now() - state.shown) / 1000 });
  }

  const back = () => ask("/back", { pair: state.pair });

  $("start").addEventListener("submit", (event) => {
    event.preventDefault();
    state.rater = $("name").value;
    ask("/next", {});
  });
  for (const button of buttons) button.addEventListener("click", () => choose(button.dataset.choice));
  $("back").addEventListener("click", back);
  $("back-end").addEventListener("click", back);
  $("again").addEventListener("click", () => state.failed && state.failed());
  document.addEventListener("keydown", (event) => {
    if (!$("keys").checked || $("progress").hidden || event.repeat) return;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const key = event.key.toLowerCase();
    if (key in keys) choose(keys[key]);
    else if (key === "b") back();
    else if (key === "r" && state.pair && !$("reference").hidden) $("reference").open = !$("reference").open;
    else return;
    event.preventDefault();
  });
  $("name").focus();
})();

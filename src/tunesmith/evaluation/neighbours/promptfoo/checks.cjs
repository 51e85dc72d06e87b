// What is right, task by task. `config` holds what the task was fitted to; the row's expected answer is looked up by id.
const rows = new Map(require("./rows.json").map((row) => [row.id, row]));

const told = (pass, expected) => ({
  pass: Boolean(pass),
  score: Number(Boolean(pass)),
  reason: pass ? "as expected" : `expected: ${expected}`,
});
// A share that fails no row by itself: what is right is said by the check beside it.
const share = (score, expected) => ({ pass: true, score, reason: `expected: ${expected}` });
const spaced = (text) => text.trim().split(/\s+/).join(" ");

function check(compare) {
  return (output, context) => {
    const { expected } = rows.get(context.vars.id);
    const config = context.config || {};
    const closing = (config.closing || "").trim();
    const bare = (text) => {
      const stripped = String(text).trim();
      return closing && stripped.endsWith(closing) ? stripped.slice(0, -closing.length).trim() : stripped;
    };
    const said = typeof output === "string" ? bare(output) : JSON.stringify(output);
    return compare(said, expected, config);
  };
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

// The first JSON list or object that stands anywhere in a text.
function firstJson(text) {
  for (let start = 0; start < text.length; start++) {
    if (text[start] !== "[" && text[start] !== "{") continue;
    for (let end = text.length; end > start; end--) {
      if (text[end - 1] !== "]" && text[end - 1] !== "}") continue;
      const value = parsed(text.slice(start, end));
      if (value !== undefined) return value;
    }
  }
  return undefined;
}

const label = (text) => spaced(text.replace(/_/g, " ").replace(/^["'`“”\s]+|["'`“”\s.!]+$/g, "")).toLowerCase();

function labels(text, separator) {
  const value = parsed(text);
  if (["", "none", "[]"].includes(text.toLowerCase().replace(/\.$/, ""))) return [];
  const parts = Array.isArray(value) ? value.map(String) : text.split(separator.trim() || "\n");
  return [...new Set(parts.map(label))].filter(Boolean).sort();
}

// The items of a JSON value: texts of a list, `key: text` of an object; case and spaces do not matter.
function items(value, key = "") {
  if (value === null || value === undefined || value === "") return [];
  if (Array.isArray(value)) return value.flatMap((element) => items(element, key));
  if (typeof value === "object")
    return Object.entries(value).flatMap(([name, inner]) => items(inner, key ? `${key}.${name}` : name));
  return [JSON.stringify([key, typeof value === "string" ? spaced(value).toLowerCase() : value])];
}

function sharedF1(said, wanted) {
  const left = [...wanted];
  let hits = 0;
  for (const item of said) {
    const place = left.indexOf(item);
    if (place >= 0) {
      left.splice(place, 1);
      hits += 1;
    }
  }
  return said.length + wanted.length ? (2 * hits) / (said.length + wanted.length) : 1;
}

// The texts that are each a right answer; one empty text where the list says that there is none.
const references = (expected) => {
  const value = parsed(expected);
  const several = Array.isArray(value) && value.every((one) => typeof one === "string");
  const texts = (several ? value : [expected]).map((one) => one.trim());
  return several ? [...texts.filter(Boolean), ...(texts.some(Boolean) ? [] : [""])] : texts;
};

// SQuAD's normal form: lower case, no punctuation and articles; these count where nothing else is said.
function normal(text) {
  const bare = spaced(text.toLowerCase().replace(/[\p{P}$+<=>^`|~]/gu, ""));
  const rest = bare.replace(/(?<![\p{L}\p{N}_])(a|an|the)(?![\p{L}\p{N}_])/gu, " ");
  return spaced(rest) || bare || spaced(text.toLowerCase());
}

// Letters of scripts without spaces between words: each is a word, with the marks that follow it.
const unspaced =
  /[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u{20000}-\u{3ffff}]/u;
const letters = (word) => {
  const one = `(?:(?=${unspaced.source})[\\p{L}\\p{N}]\\p{M}*)`;
  return word.normalize("NFC").match(new RegExp(`${one}|(?:(?!${unspaced.source})[\\p{L}\\p{N}]\\p{M}*)+`, "gu")) || [];
};
const tokens = (text) =>
  normal(text)
    .split(" ")
    .filter(Boolean)
    .flatMap((word) => (unspaced.test(word) ? letters(word) : [word]));
const answered = (said, { noAnswer }) => (noAnswer && normal(said) === noAnswer ? "" : said);

const number = (text) => {
  const marked = text.includes("####") ? text.split("####").pop() : text;
  const found = marked.replace(/(\d),(?=\d{3})/g, "$1").match(/-?\d*\.?\d+(?:[eE][-+]?\d+)?/g);
  return found ? Number(found[found.length - 1]) : NaN;
};

const sorted = (value) => {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return typeof value === "string" ? spaced(value).toLowerCase() : value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
};
const calls = (text) => {
  const value = firstJson(text);
  const list = value === undefined ? [] : Array.isArray(value) ? value : [value];
  return JSON.stringify(list.map((call) => [call.name, sorted(call.arguments ?? call.parameters ?? {})]));
};

const sets = (said, expected, { separator }) => [labels(said, separator), labels(expected, separator)];
const bags = (said, expected) => [items(firstJson(said)).sort(), items(parsed(expected)).sort()];
const equal = ([a, b]) => JSON.stringify(a) === JSON.stringify(b);

module.exports = {
  label: check((said, expected) => told(label(said.split("\n")[0]) === label(expected), expected)),
  labels: check((said, expected, config) => told(equal(sets(said, expected, config)), expected)),
  labelShare: check((said, expected, config) => share(sharedF1(...sets(said, expected, config)), expected)),
  number: check((said, expected, { tolerance }) => {
    const [a, b] = [number(said), number(expected)];
    const limit = tolerance === null || tolerance === undefined ? Math.abs(b) / 1e9 : tolerance;
    return told(Math.abs(a - b) <= limit, expected);
  }),
  json: check((said, expected) => {
    const value = firstJson(said);
    return told(value !== undefined && Array.isArray(value) === Array.isArray(parsed(expected)), expected);
  }),
  items: check((said, expected) =>
    told(firstJson(said) !== undefined && equal(bags(said, expected)), expected),
  ),
  itemShare: check((said, expected) => share(sharedF1(...bags(said, expected)), expected)),
  reference: check((said, expected, config) =>
    told(references(expected).some((one) => normal(answered(said, config)) === normal(one)), expected),
  ),
  wordShare: check((said, expected, config) => {
    const words = tokens(answered(said, config));
    return share(Math.max(...references(expected).map((one) => sharedF1(words, tokens(one)))), expected);
  }),
  text: check((said, expected) => told(references(expected).some((one) => spaced(said) === spaced(one)), expected)),
  calls: check((said, expected) => told(calls(said) === calls(expected), expected)),
};

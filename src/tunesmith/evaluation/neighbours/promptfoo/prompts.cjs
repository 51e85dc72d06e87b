// The exact prompt of a candidate for a row; promptfoo asks for it by the candidate's name, the row by its id.
const rows = new Map(require("./rows.json").map((row) => [row.id, row]));
const candidates = new Set([...rows.values()].flatMap((row) => Object.keys(row.prompts)));

// What looks like a placeholder or a tag is the user's own text. Wrapped as a whole, no prompt is taken for JSON either,
// which promptfoo would write anew.
const raw = (text) => `{% raw %}${text.replaceAll("{%", '{% endraw %}{{ "{%" }}{% raw %}')}{% endraw %}`;

for (const candidate of candidates) {
  module.exports[candidate] = ({ vars }) => {
    const prompt = rows.get(vars.id).prompts[candidate];
    return raw(typeof prompt === "string" ? prompt : JSON.stringify(prompt));
  };
}

// The exact prompt of a candidate for a row; promptfoo asks for it by the candidate's name, the row by its id.
const rows = new Map(require("./rows.json").map((row) => [row.id, row]));
const candidates = new Set([...rows.values()].flatMap((row) => Object.keys(row.prompts)));

for (const candidate of candidates) {
  module.exports[candidate] = ({ vars }) => {
    const prompt = rows.get(vars.id).prompts[candidate];
    const text = typeof prompt === "string" ? prompt : JSON.stringify(prompt);
    return `{% raw %}${text}{% endraw %}`; // what looks like a placeholder is the user's own text
  };
}

// A conversation: turns of {question: {text, pictures}, answers}, one answer for each column.

// What the API is sent for the question of turn `last` in this column. Turns that have no answer are left out; those from before the
// comparison have one answer for both columns.
export function messages(turns, last, column, system) {
  const sent = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, last)) {
    const answer = turn.answers[column] ?? turn.answers[0];
    if (answer.text) sent.push({ role: "user", content: content(turn.question) }, { role: "assistant", content: answer.text });
  }
  return [...sent, { role: "user", content: content(turns[last].question) }];
}

function content({ text, pictures }) {
  if (!pictures.length) return text;
  const parts = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

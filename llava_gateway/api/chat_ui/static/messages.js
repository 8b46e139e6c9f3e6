// The messages of the API for a conversation. Its turns are objects {question: {text, images}, answers}, with one answer for each column.

// Returns the API's messages up to the question of turn `last`, for a column. Turns without an answer are left out. Turns from before the
// comparison have a single answer, which both columns use.
export function messagesFor(turns, last, column, system) {
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, last)) {
    const answer = turn.answers[column] ?? turn.answers[0];
    if (answer?.text) messages.push({ role: "user", content: content(turn.question) }, { role: "assistant", content: answer.text });
  }
  return [...messages, { role: "user", content: content(turns[last].question) }];
}

function content({ text, images }) {
  if (!images.length) return text;
  const parts = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return text ? [...parts, { type: "text", text }] : parts;
}

// A conversation: its questions and answers, and the requests, the title and the totals that are made of them.

import { Answer } from "./answer.js";

const TITLE_LENGTH = 80; // characters
const SEARCH_LENGTH = 100_000; // characters of a conversation that the search reads

export function newConversation() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, revision: 0, title: "", system: "", isJson: false, turns: [] };
}

// Returns the conversation as plain objects, which the browser can store.
export function record({ turns, ...conversation }) {
  return { ...conversation, turns: turns.map(({ question, answers }) => ({ question, answers: answers.map((answer) => answer.record()) })) };
}

// Returns the conversation of a record.
export function fromRecord({ turns, ...conversation }) {
  return { ...conversation, turns: turns.map(({ question, answers }) => ({ question, answers: answers.map((answer) => new Answer(answer)) })) };
}

// Returns the user's title, or else the beginning of the first question, which may be empty.
export const titleOf = ({ title, turns }) => title || (turns[0]?.question.text ?? "").slice(0, TITLE_LENGTH);

// Returns the texts of the conversation for the search.
export function searchText({ title, turns }) {
  const texts = turns.flatMap(({ question, answers }) => [question.text, ...answers.map(({ text }) => text)]);
  return [title, ...texts].join("\n").slice(0, SEARCH_LENGTH).toLowerCase();
}

// Returns the tokens of all requests whose answers the conversation has, as {sum, image}.
export function totalTokens({ turns }) {
  const tokens = turns.flatMap(({ answers }) => answers.map((answer) => answer.tokens ?? { text: 0, image: 0, completion: 0 }));
  return {
    sum: tokens.reduce((sum, { text, image, completion }) => sum + text + image + completion, 0),
    image: tokens.reduce((sum, { image }) => sum + image, 0),
  };
}

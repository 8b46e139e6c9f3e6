// The turns on the page.

import { copy } from "./clipboard.js";
import { showImages } from "./image_list.js";
import { t } from "./language.js";
import { MarkdownView } from "./markdown_view.js";
import { follow, goToLatest } from "./scroll.js";
import { vote } from "./votes.js";

const turnTemplate = document.getElementById("turn-template");
const answerTemplate = document.getElementById("answer-template");
const turnList = document.getElementById("turns");

// Removes all turns after the first `count`.
export function truncate(count) {
  [...turnList.children].slice(count).forEach((turn) => turn.remove());
}

// Adds a turn with its question. `onEdit` is called when the user wants to edit the question.
export function addTurn({ text, images }, onEdit) {
  const turn = turnTemplate.content.firstElementChild.cloneNode(true);
  showImages(turn.querySelector(".images"), images);
  turn.querySelector(".question .text").textContent = text;
  turn.querySelector(".edit").addEventListener("click", onEdit);
  turnList.append(turn);
}

// Adds a column's answer to a turn, or replaces the earlier answer. `onAgain` is called when the user wants another answer; `messages`
// returns the messages that the answer continues. Returns a function that shows added text and the answer's state.
export function addAnswer(answer, turn, column, { onAgain, messages }) {
  const view = answerTemplate.content.firstElementChild.cloneNode(true);
  const [text, error, cost] = [".text", ".error", ".cost"].map((name) => view.querySelector(name));
  const markdown = new MarkdownView(text, answer.isJson, follow);
  const answers = turnList.children[turn].querySelector(".answers");
  view.setAttribute("aria-label", t("answerOf", { model: answer.model }));
  view.querySelector(".model").textContent = answer.model;
  view.querySelector(".again").addEventListener("click", onAgain);
  const votes = view.querySelectorAll("[data-vote]");
  for (const button of votes) button.addEventListener("click", () => vote(answer, messages(), votes, button));
  if (answers.children[column]) answers.children[column].replaceWith(view);
  else answers.append(view);
  goToLatest();
  return (added) => {
    markdown.add(added);
    cost.textContent = answer.cost;
    if (answer.done) {
      markdown.finish();
      view.setAttribute("aria-busy", "false");
      view.classList.toggle("empty", !answer.text);
      error.textContent = answer.error;
      error.hidden = !answer.error;
    }
    follow();
  };
}

turnList.addEventListener("click", ({ target }) => {
  const code = target.closest(".copy-code")?.closest(".code");
  if (code) copy(code.querySelector("code").textContent);
});

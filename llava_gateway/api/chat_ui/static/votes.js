// What people think of an answer, told to the server. The last vote counts.

import * as api from "./api.js";
import { say } from "./status.js";

export async function vote(answer, buttons, pressed) {
  const { model, messages } = answer.body;
  try {
    await api.vote({ model, vote: pressed.dataset.vote, messages: [...messages, { role: "assistant", content: answer.text }] });
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
    say("Thank you: the server keeps your vote with the conversation and its pictures.");
  } catch (error) {
    say(error.message);
  }
}

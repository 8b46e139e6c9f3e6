// Votes on answers, which are sent to the server. A user's last vote on an answer counts.

import * as api from "./api.js";
import { showStatus } from "./status.js";

export async function vote(answer, buttons, pressed) {
  const { model, messages } = answer.body;
  try {
    await api.vote({ model, vote: pressed.dataset.vote, messages: [...messages, { role: "assistant", content: answer.text }] });
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
    showStatus("Thank you: the server keeps your vote with the conversation and its pictures.");
  } catch (error) {
    showStatus(error.message);
  }
}

// Votes on answers, which are sent to the server. A user's last vote on an answer counts.

import * as api from "./api.js";
import { t } from "./language.js";
import { showStatus } from "./status.js";

// Sends the vote of a button. `messages` are the messages before the answer.
export async function vote({ model, text }, messages, buttons, pressed) {
  try {
    await api.vote({ model, vote: pressed.dataset.vote, messages: [...messages, { role: "assistant", content: text }] });
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === pressed));
    showStatus(t("thanks"));
  } catch (error) {
    showStatus(error.message);
  }
}

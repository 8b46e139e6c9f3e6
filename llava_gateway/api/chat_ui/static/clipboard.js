// Copies a text. Where the page may not use the clipboard, it shows the text in a dialog.

import { t } from "./language.js";
import { showStatus } from "./status.js";

const field = document.getElementById("code");

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    showStatus(t("copiedCode"));
  } catch { // the page is not served by https, or the user has not allowed the clipboard
    field.value = text;
    document.getElementById("code-dialog").showModal();
    field.select();
  }
}

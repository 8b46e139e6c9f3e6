// The API key. The page asks for a key when the server requires one, and keeps it in the session of this tab.

const STORAGE_NAME = "llava-gateway-key";
const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key");
let pending = null; // the promise of the open dialog

export const hasKey = () => Boolean(sessionStorage.getItem(STORAGE_NAME));

// Returns the authorization header. The server reads it as UTF-8, but fetch accepts one character for each byte.
export function authHeaders() {
  const key = sessionStorage.getItem(STORAGE_NAME);
  return key ? { authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}` } : {};
}

// Asks the user for a key and returns whether one was given. `reason` is shown. Concurrent requests share one dialog.
export function askForKey(reason) {
  pending ??= new Promise((resolve) => {
    document.getElementById("key-why").textContent = reason;
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
    dialog.showModal();
  }).finally(() => (pending = null));
  return pending;
}

dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(STORAGE_NAME, field.value.trim());
  dialog.close("given");
});

// The key that requests come with: asked for when the server wants one, and kept for this tab's session alone.

const NAME = "llava-gateway-key";
const dialog = document.getElementById("key-dialog");
const field = document.getElementById("key");
let asking = null;

export const hasKey = () => Boolean(sessionStorage.getItem(NAME));

// As UTF-8, which the server reads and fetch takes only byte by byte.
export function headers() {
  const key = sessionStorage.getItem(NAME);
  return key ? { authorization: `Bearer ${String.fromCharCode(...new TextEncoder().encode(key))}` } : {};
}

// Whether a key was given. `why` is the server's word. Requests that ask at the same time share one answer.
export function ask(why) {
  asking ??= new Promise((resolve) => {
    document.getElementById("key-why").textContent = why;
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
    dialog.showModal();
  }).finally(() => (asking = null));
  return asking;
}

dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(NAME, field.value.trim());
  dialog.close("given");
});

// Messages of the page: in the status line at its end, or only for screen readers.

const [statusLine, announcement] = ["status", "spoken"].map((id) => document.getElementById(id));

export const showStatus = (text) => (statusLine.textContent = text);

export const announce = (text) => (announcement.textContent = text);

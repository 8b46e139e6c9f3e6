// What the page tells: in the line at its end, or to those alone who listen to it.

const [line, voice] = ["status", "spoken"].map((id) => document.getElementById(id));

export const say = (text) => (line.textContent = text);

export const speak = (text) => (voice.textContent = text);

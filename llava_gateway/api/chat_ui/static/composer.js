// Where a question is written: its text, and the pictures that were dropped, pasted, chosen or named.

import { fromAddress, fromFile } from "./images.js";
import { show } from "./pictures.js";
import { say } from "./status.js";

const text = document.getElementById("question");
const list = document.getElementById("pictures");
const files = document.getElementById("files");
const dialog = document.getElementById("address-dialog");
const address = document.getElementById("address");
const addressError = document.getElementById("address-error");
export const NOTHING = { text: "", pictures: [] };
let pictures = [];
let reading = Promise.resolve();

// The question as it stands, once all its pictures are read; null if it is empty.
export async function question() {
  await reading;
  return text.value.trim() || pictures.length ? { text: text.value.trim(), pictures } : null;
}

export function fill(question) {
  text.value = question.text;
  setPictures(question.pictures);
  focus();
}

export const focus = () => text.focus();

function setPictures(these) {
  pictures = these;
  show(list, pictures, (number) => {
    setPictures(pictures.filter((_, other) => other !== number));
    focus();
  });
}

// One after the other, so that they stay in order.
function addFiles(these) {
  for (const file of these) {
    reading = reading.then(async () => {
      try {
        setPictures([...pictures, await fromFile(file)]);
      } catch (error) {
        say(error.message);
      }
    });
  }
}

function addAddress(given) {
  setPictures([...pictures, fromAddress(given.trim())]);
}

function addLink(link) {
  try {
    addAddress(link);
  } catch (error) {
    say(error.message);
  }
}

document.getElementById("add-files").addEventListener("click", () => files.click());
files.addEventListener("change", () => {
  addFiles(files.files);
  files.value = "";
  focus();
});

document.getElementById("add-address").addEventListener("click", () => {
  address.value = addressError.textContent = "";
  dialog.showModal();
});
dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  try {
    addAddress(address.value);
    dialog.close();
    focus();
  } catch (error) {
    addressError.textContent = error.message;
  }
});

addEventListener("paste", (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  addFiles(event.clipboardData.files);
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  const { files: dropped } = event.dataTransfer;
  const link = event.dataTransfer.getData("text/uri-list").split("\n")[0];
  if (!dropped.length && !link) return; // a text, for the field it was dropped on
  event.preventDefault();
  if (dropped.length) addFiles(dropped);
  else addLink(link);
  focus();
});

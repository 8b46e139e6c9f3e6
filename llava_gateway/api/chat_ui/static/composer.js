// The composer: the text of the next question, and its images, which the user drops, pastes, chooses or gives by address.

import { imageFromAddress, imageFromFile } from "./image_input.js";
import { showImages } from "./image_list.js";
import { showStatus } from "./status.js";

const text = document.getElementById("question");
const list = document.getElementById("images");
const dialog = document.getElementById("address-dialog");
const address = document.getElementById("address");
const addressError = document.getElementById("address-error");
export const EMPTY = { text: "", images: [] };
let images = [];
let reading = Promise.resolve(); // resolves when all chosen files are read

// Returns the question when all its images are read. Returns null if it is empty.
export async function question() {
  await reading;
  return text.value.trim() || images.length ? { text: text.value.trim(), images } : null;
}

// Replaces the text and the images.
export function fill(question) {
  text.value = question.text;
  setImages(question.images);
  focus();
}

export const focus = () => text.focus();

function setImages(newImages) {
  images = newImages;
  showImages(list, images, (removed) => {
    setImages(images.filter((_, index) => index !== removed));
    focus();
  });
}

// Reads the files one after another, so that the images keep the order of the files.
function addFiles(newFiles) {
  for (const file of newFiles) {
    reading = reading.then(async () => {
      try {
        setImages([...images, await imageFromFile(file)]);
      } catch (error) {
        showStatus(error.message);
      }
    });
  }
}

// Throws an Error if the address is wrong.
function addAddress(value) {
  setImages([...images, imageFromAddress(value.trim())]);
}

function addLink(link) {
  try {
    addAddress(link);
  } catch (error) {
    showStatus(error.message);
  }
}

for (const [input, button] of [["files", "add-files"], ["camera", "add-camera"]].map((ids) => ids.map((id) => document.getElementById(id)))) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    addFiles(input.files);
    input.value = "";
    focus();
  });
}

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
  if (!dropped.length && !link) return; // dropped text goes to the field below the pointer
  event.preventDefault();
  if (dropped.length) addFiles(dropped);
  else addLink(link);
  focus();
});

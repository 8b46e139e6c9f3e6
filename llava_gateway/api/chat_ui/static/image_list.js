// Lists of images on the page: a small preview for each image, or its name if the page may not show it.

import { t } from "./language.js";

const template = document.getElementById("image-template");

// Shows the images in a list. `onRemove`, if given, is called with an image's index when its button is pressed. Without `onRemove` there
// is no button.
export function showImages(list, images, onRemove) {
  list.replaceChildren(...images.map((image, index) => listItem(image, onRemove && (() => onRemove(index)))));
}

function listItem(image, onRemove) {
  const item = template.content.firstElementChild.cloneNode(true);
  const preview = item.querySelector("img");
  const address = item.querySelector(".address");
  const button = item.querySelector(".remove");
  if (image.displayable) {
    preview.src = image.url;
    preview.alt = image.name;
    address.remove();
  } else {
    address.textContent = image.name;
    address.title = image.name;
    preview.remove();
  }
  if (onRemove) {
    button.setAttribute("aria-label", t("remove", { name: image.name }));
    button.addEventListener("click", onRemove);
  } else {
    button.remove();
  }
  return item;
}

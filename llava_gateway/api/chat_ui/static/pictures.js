// Pictures as lists show them: small, or by their address where the browser is not to load them.

const template = document.getElementById("picture-template");

// `remove`, if given, is called with the number of the picture whose button was pressed.
export function show(list, pictures, remove) {
  list.replaceChildren(...pictures.map((picture, number) => item(picture, remove && (() => remove(number)))));
}

function item(picture, remove) {
  const item = template.content.firstElementChild.cloneNode(true);
  const image = item.querySelector("img");
  const address = item.querySelector(".address");
  const button = item.querySelector(".remove");
  if (picture.shown) {
    image.src = picture.url;
    image.alt = picture.name;
    address.remove();
  } else {
    address.textContent = picture.name;
    address.title = picture.name;
    image.remove();
  }
  if (remove) {
    button.setAttribute("aria-label", `Remove ${picture.name}`);
    button.addEventListener("click", remove);
  } else {
    button.remove();
  }
  return item;
}

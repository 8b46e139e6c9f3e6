// The images of a question, as objects {url, name, displayable}. `url` is sent to the API: a data URL, or an address that the server
// fetches. `displayable` says whether the page may show the image: not if its URL is on another server, or if the browser cannot decode it.

import { t } from "./language.js";

const MAX_SIDE = 1344; // pixels; a LLaVA model sees no more
const JPEG_QUALITY = 0.9;

// Returns the image of a file, reduced to MAX_SIDE. A file that the browser cannot decode is sent unchanged. Throws an Error if the file
// is not an image.
export async function imageFromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    if (!file.type.startsWith("image/")) throw new Error(t("notAnImage", { name: file.name }));
    return { url: await dataUrl(file), name: file.name, displayable: false };
  }
  const url = encode(bitmap);
  bitmap.close();
  return { url, name: file.name || t("picture"), displayable: true };
}

// Returns the image at an http(s) address, which the server fetches. Throws an Error if the address is of another kind.
export function imageFromAddress(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!url || !["http:", "https:"].includes(url.protocol)) throw new Error(t("addressWrong"));
  return { url: url.href, name: url.href, displayable: false };
}

// Returns the bitmap as a data URL: a JPEG, or a PNG if it has transparent pixels.
function encode(bitmap) {
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return isOpaque(context, canvas) ? canvas.toDataURL("image/jpeg", JPEG_QUALITY) : canvas.toDataURL("image/png");
}

function isOpaque(context, { width, height }) {
  const { data } = context.getImageData(0, 0, width, height);
  for (let alpha = 3; alpha < data.length; alpha += 4) if (data[alpha] < 255) return false;
  return true;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(t("unreadable", { name: file.name })));
    reader.readAsDataURL(file);
  });
}

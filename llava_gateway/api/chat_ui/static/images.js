// Pictures as a question has them: {url, name, shown}. `url` is what is sent; `shown` whether the browser may show it.

const LONGEST = 1344;
const QUALITY = 0.9;

// A file, made no larger than a LLaVA can see, once. What the browser cannot read is left to the server. Throws an Error.
export async function fromFile(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    if (!file.type.startsWith("image/")) throw new Error(`${file.name} is not an image.`);
    return { url: await dataUrl(file), name: file.name, shown: false };
  }
  const url = encode(bitmap);
  bitmap.close();
  return { url, name: file.name || "picture", shown: true };
}

// An address, which the server fetches. Throws an Error.
export function fromAddress(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  if (!url || !["http:", "https:"].includes(url.protocol)) throw new Error("An image's address begins with http:// or https://.");
  return { url: url.href, name: url.href, shown: false };
}

function encode(bitmap) {
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return isOpaque(context, canvas) ? canvas.toDataURL("image/jpeg", QUALITY) : canvas.toDataURL("image/png");
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
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

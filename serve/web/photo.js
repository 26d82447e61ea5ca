// A file -> a photo to look at and to send. What the server reads has to stand the way in which the browser shows it.

const SENT_AS_IS = ["image/jpeg", "image/png", "image/webp"];
const LOSSLESS_PIXELS = 4e6; // larger pictures that have to be drawn anew go as JPEG, or they would exceed the server's bytes

export class PhotoError extends Error {}

/** `{name, type, url, width, height, dataUrl}`, sizes in pixels of the upright photo. Throws PhotoError with words for people. */
export async function readPhoto(file) {
  let url = URL.createObjectURL(file);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    throw new PhotoError(`“${file.name}” is not a picture that this browser can show. Save it as JPEG, PNG or WebP.`);
  }
  const {naturalWidth: width, naturalHeight: height} = image;
  let sent = file;
  if (!SENT_AS_IS.includes(file.type) || await mayTurnOtherwise(file)) {
    sent = await drawAnew(image, width * height <= LOSSLESS_PIXELS ? "image/png" : "image/jpeg");
    URL.revokeObjectURL(url);
    url = URL.createObjectURL(sent);
  }
  return {name: file.name || "photo.png", type: sent.type, url, width, height, dataUrl: await toDataUrl(sent)};
}

// All browsers turn photos by EXIF in JPEG; the server also in PNG and WebP.
async function mayTurnOtherwise(file) {
  return file.type !== "image/jpeg" && /exif/i.test(new TextDecoder("latin1").decode(await file.arrayBuffer()));
}

function drawAnew(image, type) {
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // as the server fills what is transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  return canvas.convertToBlob({type, quality: 0.95});
}

function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new PhotoError("The file cannot be read. Choose it again."));
    reader.readAsDataURL(blob);
  });
}

/** The first picture that was dropped or pasted, or null. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? transfer?.files?.[0] ?? null;
}

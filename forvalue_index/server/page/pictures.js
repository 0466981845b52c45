// Pictures of rows, and those that are given with a prompt.

import { blob } from "./api.js";
import { button, element, say, visible } from "./dom.js";

const HASH = "image_blake2b"; // of what a row tells of a picture
const AT_ONCE = 3;
const LARGEST = 8 << 20; // bytes of a picture that is sent
let running = 0;
const waiting = [];

async function next() {
  if (running >= AT_ONCE || waiting.length === 0) return;
  running++;
  await waiting.shift()();
  running--;
  next();
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    waiting.push(() => load(target));
    next();
  }
});

async function load(image) {
  try {
    image.src = URL.createObjectURL(await blob("picture", { key: image.dataset.key, n: image.dataset.n }));
  } catch {
    image.replaceWith(element("span", { class: "soft" }, "[a picture that is not there]"));
  }
}

// The pictures of a row, which are loaded when they are seen. `row` says how many there are.
export function picturesOf(key, row, format) {
  const n = countIn(row, format);
  return Array.from({ length: n }, (_, i) => {
    const alt = `Picture ${i + 1} of ${n} of row ${visible(key)}`;
    const image = element("img", { class: "picture", alt, "data-key": key, "data-n": i });
    seen.observe(image);
    return image;
  });
}

function countIn(row, format) {
  const of = (value) => {
    if (Array.isArray(value)) return value.reduce((sum, item) => sum + of(item), 0);
    if (value === null || typeof value !== "object") return 0;
    if (HASH in value) return 1;
    return Object.values(value).reduce((sum, item) => sum + of(item), 0);
  };
  const fields = [format.image_field, format.messages_field, format.prompt_field, format.response_field];
  return [...new Set(fields)].reduce((sum, field) => sum + of(row[field ?? ""]), 0);
}

// The pictures of a row, as files to ask with.
export async function filesOf(key, row, format, signal) {
  const found = [];
  for (let n = 0; n < countIn(row, format); n++) {
    found.push(await blob("picture", { key, n }, signal));
  }
  return found;
}

// A row with its pictures, of which it tells only the hash, as data: URIs in their order.
export function withPictures(row, uris) {
  const waiting = [...uris];
  const of = (value) => {
    if (Array.isArray(value)) return value.map(of);
    if (value === null || typeof value !== "object") return value;
    if (HASH in value) return waiting.shift();
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, of(item)]));
  };
  return of(row);
}

// A file as a data: URI.
export function uriOf(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture cannot be read: choose another file."));
    reader.readAsDataURL(file);
  });
}

// A field for pictures that go with a prompt; `uris()` are their data: URIs.
export function pictureField() {
  let chosen = [];
  const shown = element("div", { class: "thumbs" });
  const field = element("input", { type: "file", name: "images", accept: "image/*", multiple: true });
  field.addEventListener("change", () => {
    const files = [...field.files];
    const large = files.find((file) => file.size > LARGEST);
    if (large) say(`${large.name} is larger than 8 MB: make it smaller.`, true);
    else set(files);
  });

  function set(files) {
    chosen = files;
    const images = files.map((file, i) =>
      element("img", {
        class: "picture",
        src: URL.createObjectURL(file),
        alt: `Picture ${i + 1} of the prompt`,
      }),
    );
    shown.replaceChildren(...images);
    if (files.length > 0) shown.append(button("Remove", clear, { class: "link" }));
  }

  function clear() {
    field.value = "";
    set([]);
  }

  const box = element("div", { class: "wide" }, element("label", {}, "Picture", field), shown);
  return { box, set, uris: () => Promise.all(chosen.map(uriOf)) };
}

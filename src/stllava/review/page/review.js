// The page on which readers vote. Nothing is kept here that the server does not know, but for what is being typed.
"use strict";

const at = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("[data-choice]")];
const KEYS = Object.fromEntries(buttons.map((button) => [button.dataset.key, button.dataset.choice]));
const SAID = Object.fromEntries(buttons.map((button) => [button.dataset.choice, button.dataset.said]));
const typed = at("typed"); // Of a question that is read by itself nobody types an answer.
const READER = { "X-Reader": encodeURIComponent(document.body.dataset.reader) };
const KEPT = 6;
const AS_STORED = "0 1 false";
const DEEP = 65536;
let shown = { state: "loading" };
let waiting = false;
let struck = [];

// --- the server ------------------------------------------------------------------------------------------------------

async function ask(path, body) {
  const post = { method: "POST", headers: { "Content-Type": "application/json", ...READER }, body: JSON.stringify(body) };
  const get = { headers: READER };
  const reply = await fetch(path, { credentials: "same-origin", cache: "no-store", ...(body === undefined ? get : post) });
  const type = reply.headers.get("Content-Type") || "";
  const said = type.startsWith("application/json") ? await reply.json() : { error: await reply.text() };
  return reply.ok ? said : { error: said.error || `The server said ${reply.status}.`, status: reply.status };
}

// One thing at a time: a second key while the first is being written does nothing.
async function act(path, body) {
  if (waiting) return;
  waiting = true;
  try {
    const said = await ask(path, body);
    trouble(said.error);
    if (!said.error) show(said);
    else if (said.status === 409) show(await ask("/task"));
  } catch {
    trouble("The server cannot be reached, so nothing was saved. Start it again, then open its new address.");
  } finally {
    waiting = false;
  }
}

function trouble(text) {
  at("trouble").textContent = text || "";
  at("trouble").hidden = !text;
}

// --- what is on screen -----------------------------------------------------------------------------------------------

function show(said) {
  const fresh = said.task !== shown.task || said.turn !== shown.turn || (shown.state === "voted" && said.state === "open");
  shown = said;
  document.body.dataset.state = said.state;
  document.body.dataset.task = said.task || "";
  at("progress").textContent = `${said.read} read, ${said.left} left`;
  at("done").hidden = said.state !== "done";
  at("work").hidden = said.state === "done";
  if (said.state === "done") return;
  if (fresh) showTask(said);
  showVerdict(said);
  if (said.state === "voted") at("verdict").scrollIntoView({ block: "nearest" });
  if (fresh) viewer.open(said);
}

function showTask(said) {
  struck = [];
  at("question").textContent = said.question;
  document.querySelectorAll(".answer").forEach((box, number) => {
    const side = box.dataset.side;
    box.querySelector("p").replaceChildren(
      ...said.answers[number].map((text, place) => {
        const part = document.createElement("span");
        part.textContent = text;
        // Whoever marks words to copy them strikes nothing.
        part.addEventListener("click", () => getSelection().isCollapsed && strike(part, side, place));
        return part;
      }),
    );
  });
  if (typed) typed.value = said.typed || "";
  if (at("references")) at("references").textContent = said.references.join("\nor: ");
  at("case").scrollTop = 0;
}

function strike(part, side, place) {
  if (shown.state !== "open") return;
  const found = struck.findIndex((one) => one[0] === side && one[1] === place);
  if (found < 0) struck.push([side, place]);
  else struck.splice(found, 1);
  part.classList.toggle("struck", found < 0);
}

function showVerdict(said) {
  const voted = said.state === "voted";
  buttons.forEach((button) => {
    button.disabled = voted;
    button.classList.toggle("picked", voted && button.dataset.choice === said.choice);
  });
  document.querySelectorAll(".answer").forEach((box) => {
    box.classList.toggle("picked", voted && box.dataset.side === said.choice);
    box.classList.toggle("preferred", voted && box.dataset.side === said.verdict);
  });
  document.querySelector('[data-act="next"]').disabled = !voted;
  const judged = said.verdict !== undefined || Boolean(said.rules && said.rules.length);
  at("verdict").hidden = !voted || !judged;
  at("overturn").hidden = true;
  if (!voted || !judged) return;
  showRules(said.rules || []);
  if (said.verdict === undefined) return;
  const agrees = said.choice === said.verdict;
  at("verdict").classList.toggle("differs", !agrees);
  at("verdict-line").textContent = `The expert${agrees ? " agrees" : ""}: ${SAID[said.verdict]}.`;
  at("grounds").textContent = said.grounds;
  at("grounds").hidden = !said.grounds;
  at("decisions").hidden = agrees;
  const decided = { confirm: "You confirmed the expert.", overturn: "You overturned the expert." };
  at("decided").textContent = decided[said.decision] || "";
  document.querySelectorAll("[data-decision]").forEach((button) => {
    button.classList.toggle("picked", button.dataset.decision === said.decision);
  });
}

// What each rule says of an answer that a reader has judged; no expert has.
function showRules(rules) {
  at("rules").hidden = !rules.length;
  at("decisions").hidden = true;
  at("grounds").hidden = true;
  at("verdict-line").textContent = rules.length ? "What the rules say of the answer:" : "";
  at("rules").replaceChildren(
    ...rules.map(([rule, reading]) => {
      const line = document.createElement("li");
      line.textContent = `${rule}: ${reading}`;
      return line;
    }),
  );
}

// --- what a reader does ----------------------------------------------------------------------------------------------

function words() {
  return typed ? typed.value : "";
}

function vote(choice) {
  if (shown.state !== "open") return;
  act("/vote", { task: shown.task, turn: shown.turn, choice, struck, typed: words() });
}

function decide(decision) {
  if (shown.state !== "voted" || shown.verdict === undefined || shown.choice === shown.verdict) return;
  if (decision === "confirm") {
    respond("confirm", "", null);
    return;
  }
  at("overturn").hidden = false;
  at("reason").value = shown.reason;
  at("overturn").querySelector(`[value="${shown.significant === null ? "" : shown.significant}"]`).checked = true;
  at("overturn").scrollIntoView({ block: "nearest" });
  at("reason").focus();
}

function respond(decision, reason, significant) {
  const body = { task: shown.task, turn: shown.turn, decision, reason, significant, typed: words() };
  return act("/respond", body);
}

function move(what) {
  if (what === "undo") act("/undo", {});
  if (what === "next" && shown.state === "voted") act("/next", { task: shown.task, turn: shown.turn });
  if (what === "invert") viewer.invert();
  if (what === "fit") viewer.fit();
}

at("overturn").addEventListener("submit", async (event) => {
  event.preventDefault();
  const said = new FormData(at("overturn")).get("significant");
  document.activeElement.blur();
  await respond("overturn", at("reason").value, said === "" ? null : said === "true");
});
if (typed) {
  typed.addEventListener("keydown", (event) => {
    // Enter while letters are composed, as of Japanese, takes them over and does not end the answer.
    if (event.key === "Enter" && !composing(event)) typed.blur();
  });
  typed.addEventListener("change", () => {
    if (shown.state !== "voted" || typed.value === shown.typed) return;
    respond(shown.decision || null, shown.reason || "", shown.significant === undefined ? null : shown.significant);
  });
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.choice) vote(button.dataset.choice);
  if (button.dataset.decision) decide(button.dataset.decision);
  if (button.dataset.act) move(button.dataset.act);
  if (button.id === "help-button") toggleHelp();
  if (button.type === "button") button.blur();
});
function composing(event) {
  return event.isComposing || event.keyCode === 229; // The second is what older browsers say.
}

// The letter or digit that a key stands for. A keyboard of another script has other letters there, and the French one its digits
// behind Shift alone: then it is what an English keyboard has in that place.
function meant(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const [, english] = /^(?:Key|Digit)(\w)$/.exec(event.code) || [];
  if (!english || key in KEYS || event.shiftKey) return key;
  const foreign = event.code.startsWith("Digit") ? !/^[0-9]$/.test(key) : key > "\x7f";
  return foreign ? english.toLowerCase() : key;
}

document.addEventListener("keydown", (event) => {
  if (composing(event)) return;
  const typing = event.target.matches("input");
  if (event.key === "Escape") {
    document.activeElement.blur();
    at("overturn").hidden = true;
    if (!at("help").hidden) toggleHelp();
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat && !event.key.startsWith("Arrow")) return;
  if (event.key === "Enter" && event.target.closest("button")) return; // It presses the button that has the focus.
  const key = meant(event);
  const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] };
  if (key in KEYS) vote(KEYS[key]);
  else if (key === "c") decide("confirm");
  else if (key === "o") decide("overturn");
  else if (key === "z") move("undo");
  else if (key === "v") viewer.invert();
  else if (key === "t" && typed) typed.focus();
  else if (key === "Enter") move("next");
  else if (key in steps) viewer.adjust(...steps[key].map((step) => step * 0.05));
  else return;
  event.preventDefault();
});

function toggleHelp() {
  at("help").hidden = !at("help").hidden;
  at("help-button").setAttribute("aria-expanded", String(!at("help").hidden));
}

// A number as short as it can be said: whole, or of three digits where it is small.
function short(number) {
  return String(Math.abs(number) < 100 && !Number.isInteger(number) ? Number(number.toPrecision(3)) : Math.round(number));
}

// --- the image -------------------------------------------------------------------------------------------------------

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.kept = new Map(); // pictures by id, the one used last behind all others
    this.pointers = new Map();
    this.images = [];
    this.boxes = [];
    this.asked = null;
    this.deep = {};
    this.reset();
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.fit());
  }

  reset() {
    this.slice = this.asked === null ? 0 : this.asked;
    this.brightness = 0;
    this.contrast = 1;
    this.inverted = false;
    this.window = null;
    this.view = null;
  }

  async open({ images, preload, slice, boxes, deep }) {
    this.images = images;
    this.deep = deep || {}; // of each image whose 16-bit pixels were kept, what they stand for
    this.asked = slice; // of the slices of a series, the one that the question is about; null of a question's own images
    this.boxes = boxes || []; // where text was blacked out of it, in pixels
    this.reset();
    await this.showSlice();
    // One after the other, so that they do not stand in the way of what is on screen.
    for (const id of preload) await this.load(id).catch(() => undefined);
  }

  load(id) {
    const made = this.kept.get(id) || this.fetch(id);
    this.kept.delete(id);
    this.kept.set(id, made);
    while (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
    made.catch(() => this.kept.delete(id));
    return made;
  }

  async fetch(id) {
    const reply = await fetch(`/image/${id}`, { credentials: "same-origin", cache: "no-store" });
    if (!reply.ok) throw new Error((await reply.json()).error);
    const bitmap = await createImageBitmap(await reply.blob());
    const sheet = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = sheet.getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    return { id, sheet, context, looks: AS_STORED }; // and its pixels as stored, once somebody changes their looks
  }

  // The 16-bit pixels of an image, which are asked for once somebody changes its window, and again where that failed.
  deepen(picture) {
    if (!picture.coming) {
      picture.coming = this.fetchDeep(picture);
      picture.coming.catch(() => (picture.coming = null));
    }
    return picture.coming;
  }

  async fetchDeep(picture) {
    const reply = await fetch(`/deep/${picture.id}`, { credentials: "same-origin", cache: "no-store" });
    if (!reply.ok) throw new Error((await reply.json()).error);
    const [width, height] = ["X-Width", "X-Height"].map((name) => Number(reply.headers.get(name)));
    if (width !== picture.sheet.width || height !== picture.sheet.height) throw new Error("The 16-bit pixels are of another size.");
    picture.deep = new Uint16Array(await reply.arrayBuffer());
  }

  // Of the image on screen, if its 16-bit pixels were kept: what they stand for, and its window in the units of its file.
  windowed() {
    const units = this.picture && this.deep[this.picture.id];
    if (!units) return null;
    const { offset, step, black, white } = units;
    const asStored = { level: offset + (step * (black + white)) / 2, width: Math.abs(step) * (white - black) };
    return { ...units, ...(this.window || asStored) };
  }

  async showSlice() {
    const id = this.images[this.slice];
    this.picture = null;
    this.note(id === undefined ? "This question has no image." : "The image is being loaded.");
    if (id === undefined) {
      this.draw();
      return;
    }
    try {
      const picture = await this.load(id);
      // A window that was set holds for the next slices of the series: none is shown without it first.
      if (this.window && this.deep[id]) await this.deepen(picture).catch(() => undefined);
      if (this.images[this.slice] !== id) return;
      this.note("");
      this.picture = picture;
      if (!this.view) this.fit();
      this.develop();
      document.body.dataset.image = id;
    } catch (error) {
      if (this.images[this.slice] === id) this.note(error.message || "The image cannot be shown.");
    }
  }

  note(text) {
    at("picture-note").textContent = text;
    at("picture-note").hidden = !text;
  }

  // Brightness and contrast change what pixels look like, once a change; zoom and pan only where they are drawn.
  develop() {
    const picture = this.picture;
    if (!picture) return;
    const seen = this.window && this.windowed();
    if (seen && !picture.deep) {
      // What is on screen stays until they are there.
      this.deepen(picture).then(
        () => this.picture === picture && this.develop(),
        (error) => this.picture === picture && this.note(error.message || "The 16-bit pixels cannot be shown."),
      );
      this.draw();
      return;
    }
    const looks = seen ? `${seen.level} ${seen.width} ${this.inverted} deep` : `${this.brightness} ${this.contrast} ${this.inverted}`;
    if (picture.looks !== looks && seen) {
      picture.pixels = this.stored(picture);
      picture.context.putImageData(this.developDeep(picture, seen), 0, 0);
      picture.looks = looks;
    } else if (picture.looks !== looks) {
      picture.pixels = this.stored(picture);
      const table = new Uint8ClampedArray(256);
      for (let value = 0; value < 256; value++) {
        const grey = (value - 127.5) * this.contrast + 127.5 + 255 * this.brightness;
        table[value] = this.inverted ? 255 - grey : grey;
      }
      const from = picture.pixels.data;
      const made = new ImageData(picture.pixels.width, picture.pixels.height);
      const to = made.data;
      for (let place = 0; place < from.length; place += 4) {
        to[place] = table[from[place]];
        to[place + 1] = table[from[place + 1]];
        to[place + 2] = table[from[place + 2]];
        to[place + 3] = 255;
      }
      picture.context.putImageData(made, 0, 0);
      picture.looks = looks;
    }
    this.draw();
  }

  // The pixels of a picture as the server sent them: they are read off its sheet before anything else is drawn there.
  stored(picture) {
    return picture.pixels || picture.context.getImageData(0, 0, picture.sheet.width, picture.sheet.height);
  }

  developDeep(picture, { offset, step, level, width }) {
    const [middle, span] = [(level - offset) / step, width / Math.abs(step)];
    const greys = new Uint8ClampedArray(DEEP);
    for (let pixel = 0; pixel < DEEP; pixel++) greys[pixel] = 255 * ((pixel - middle) / span + 0.5);
    const table = Uint32Array.from(greys, (grey) => 0xff000000 + 0x10101 * (this.inverted ? 255 - grey : grey));
    const made = new ImageData(picture.sheet.width, picture.sheet.height);
    const to = new Uint32Array(made.data.buffer);
    for (let place = 0; place < to.length; place++) to[place] = table[picture.deep[place]];
    return made;
  }

  draw() {
    const { canvas, context, picture, view } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const elsewhere = this.asked !== null && this.slice !== this.asked;
    const asked = elsewhere ? `, asked about ${this.asked + 1}` : "";
    const slices = this.images.length > 1 ? `${this.slice + 1} of ${this.images.length}${asked} · ` : "";
    const percent = view ? Math.round((100 * view.scale) / devicePixelRatio) : 100;
    const windowed = this.windowed();
    const light = windowed
      ? `window ${short(windowed.width)} · level ${short(windowed.level)} · 16 bits`
      : `brightness ${Math.round(100 * this.brightness)} · contrast ${Math.round(100 * this.contrast)}`;
    at("window-level").textContent = `${slices}${percent} % · ${light}`;
    if (!picture || !view) return;
    context.imageSmoothingEnabled = view.scale < 3;
    context.imageSmoothingQuality = view.scale < 0.5 ? "medium" : "low";
    context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
    context.drawImage(picture.sheet, 0, 0);
    context.strokeStyle = "#ff5000";
    context.lineWidth = (2 * devicePixelRatio) / view.scale;
    for (const [left, top, right, bottom] of elsewhere ? [] : this.boxes) context.strokeRect(left, top, right - left, bottom - top);
    if (windowed) Object.assign(canvas.dataset, { width: windowed.width, level: windowed.level, deep: Boolean(picture.deep) });
    Object.assign(canvas.dataset, { scale: view.scale, brightness: this.brightness, contrast: this.contrast });
  }

  resize() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(width * devicePixelRatio));
    this.canvas.height = Math.max(1, Math.round(height * devicePixelRatio));
    this.fit();
  }

  fit() {
    if (!this.picture) return;
    const { canvas, picture } = this;
    const scale = Math.min(canvas.width / picture.sheet.width, canvas.height / picture.sheet.height);
    this.view = {
      scale, x: (canvas.width - scale * picture.sheet.width) / 2, y: (canvas.height - scale * picture.sheet.height) / 2,
    };
    this.draw();
  }

  zoom(factor, clientX, clientY) {
    if (!this.view) return;
    const { x, y } = this.place(clientX, clientY);
    const scale = Math.min(64, Math.max(0.02, this.view.scale * factor));
    const change = scale / this.view.scale;
    this.view = { scale, x: x - (x - this.view.x) * change, y: y - (y - this.view.y) * change };
    this.draw();
  }

  place(clientX, clientY) {
    const box = this.canvas.getBoundingClientRect();
    return { x: (clientX - box.left) * devicePixelRatio, y: (clientY - box.top) * devicePixelRatio };
  }

  wheel(event) {
    event.preventDefault();
    const way = event.deltaY || event.deltaX;
    if (event.shiftKey) {
      const slice = Math.min(this.images.length - 1, Math.max(0, this.slice + Math.sign(way)));
      if (slice !== this.slice) {
        this.slice = slice;
        if (this.asked === null) this.window = null; // A question's images are of units of their own, slices of one series of the same.
        this.showSlice();
      }
    } else this.zoom(Math.exp(-way * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.view) return;
    const [right, down] = [event.clientX - before.clientX, event.clientY - before.clientY];
    const others = [...this.pointers.values()].filter((one) => one.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (others.length) {
      const away = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
      const [x, y] = [(event.clientX + others[0].clientX) / 2, (event.clientY + others[0].clientY) / 2];
      if (away(before) > 0) this.zoom(away(event) / away(before), x, y);
    } else if (event.buttons & 2) this.adjust(-down / 300, right / 300);
    else {
      this.view = { ...this.view, x: this.view.x + right * devicePixelRatio, y: this.view.y + down * devicePixelRatio };
      this.draw();
    }
  }

  adjust(brightness, contrast) {
    const seen = this.windowed();
    if (seen) {
      const { offset, step } = seen;
      const unit = Math.abs(step);
      // The file's own window may lie beyond its values: it is no end at which the first change would jump.
      const levels = [offset, offset + (DEEP - 1) * step, seen.level];
      const level = seen.level - brightness * seen.width * Math.sign(step);
      const width = Math.max(seen.width, unit) * Math.exp(-2 * contrast);
      this.window = {
        level: Math.min(Math.max(...levels), Math.max(Math.min(...levels), level)),
        width: Math.min(Math.max(2 * DEEP * unit, seen.width), Math.max(unit, width)),
      };
      this.develop();
      return;
    }
    this.brightness = Math.min(1, Math.max(-1, this.brightness + brightness));
    this.contrast = Math.min(8, Math.max(0.1, this.contrast * Math.exp(2 * contrast)));
    this.develop();
  }

  invert() {
    this.inverted = !this.inverted;
    this.develop();
  }
}

const viewer = new Viewer(at("picture"));
ask("/task").then((said) => (said.error ? trouble(said.error) : show(said)), () => trouble("The server cannot be reached."));

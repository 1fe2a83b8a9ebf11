// Drawing: the DOM is keyed by block, so that a drag over 120 blocks only moves what changed.
const COLORS = ["#3b5bdb", "#0b7285", "#2b7a3b", "#862e9c", "#a61e4d", "#b3430a", "#5f3dc4", "#1864ab"];
const root = element.querySelector(".tl"), q = (name) => root.querySelector(".tl-" + name);
const bar = q("bar"), scroller = q("scroll"), canvas = q("canvas"), ruler = q("ruler"), film = q("film"), lane = q("lane");
const lockedLayer = q("locked"), playhead = q("playhead"), hint = q("hint"), live = q("live");
const { el, icon } = magi;

let blocks = [], blend = 0, gaps = "hold", selected = null, zoom = null;      // zoom: pixels per second, null = fit
let locked = 0, running = false, done = 0, time = null, editor = null;
const nodes = new Map(), hues = new Map();
let hueCount = 0;

const limit = () => (props.seconds ? props.seconds : Infinity);
const shown = () => (props.seconds ? props.seconds : Math.max(20, done + 10, ...blocks.map((b) => b.end + 8)));
const fitScale = () => Math.max(2, (scroller.clientWidth - 2) / shown());
const scale = () => (zoom === null ? Math.max(fitScale(), 44) : Math.max(zoom, fitScale() * 0.999));
const secondAt = (clientX) => (clientX - canvas.getBoundingClientRect().left) / scale();
const hue = (id) => { if (!hues.has(id)) hues.set(id, COLORS[hueCount++ % COLORS.length]); return hues.get(id); };
const say = (text) => { live.textContent = text; };
const setStyle = (node, name, value) => { if (node.style[name] !== value) node.style[name] = value; };
const setAttribute = (node, name, value) => { if (node.getAttribute(name) !== value) node.setAttribute(name, value); };
const setText = (node, value) => { if (node.textContent !== value) node.textContent = value; };

function blockNode(block) {
  let node = nodes.get(block.id);
  if (node) return node;
  node = el("div", { class: "tl-block", role: "button", tabindex: "-1", "data-id": block.id },
    el("span", { class: "tl-edge tl-edge-start", "data-edge": "start" }),
    el("span", { class: "tl-label" }), " ", el("span", { class: "tl-time" }),
    el("span", { class: "tl-edge tl-edge-end", "data-edge": "end" }));
  nodes.set(block.id, node);
  lane.append(node);
  return node;
}

// A block's own colour; after a seam the colour before it fades out over the seconds that are blended.
function colour(block, i, pps) {
  const before = blocks[i - 1], length = Math.min(blend, block.end - block.start);
  if (!length || !before || before.prompt === block.prompt) return hue(block.id);
  return `linear-gradient(90deg, ${hue(before.id)}, ${hue(block.id)} ${length * pps}px)`;
}

function drawBlocks() {
  const pps = scale(), alive = new Set();
  blocks.forEach((block, i) => {
    alive.add(block.id);
    const node = blockNode(block), isLocked = block.end <= locked, part = block.start < locked && !isLocked;
    setStyle(node, "left", block.start * pps + "px");
    setStyle(node, "width", (block.end - block.start) * pps - 2 + "px");
    setStyle(node, "background", colour(block, i, pps));
    node.classList.toggle("selected", block.id === selected);
    node.classList.toggle("locked", isLocked);
    node.classList.toggle("part", part);
    node.classList.toggle("blended", blend > 0 && i > 0 && blocks[i - 1].prompt !== block.prompt);
    node.classList.toggle("empty", !block.prompt.trim());
    setText(node.children[1], block.prompt.trim() || "Click to write what happens");
    const times = `${block.start}–${block.end} s`;
    setText(node.children[2], isLocked ? times + (block.end <= done ? " · made" : " · begun") : times);
    const title = `${times}: ${block.prompt}`;
    if (node.title !== title) node.title = title;
    setAttribute(node, "aria-pressed", String(block.id === selected));
    setAttribute(node, "tabindex", block.id === selected || (!selected && block === blocks[0]) ? "0" : "-1");
  });
  for (const [id, node] of nodes) if (!alive.has(id)) { node.remove(); nodes.delete(id); }
  let before = null;
  for (const block of blocks) {                                   // DOM order is reading order
    const node = nodes.get(block.id), wanted = before ? before.nextSibling : lane.firstChild;
    if (node !== wanted && !drag) lane.insertBefore(node, wanted);
    before = node;
  }
}

let rulerKey = "";
function drawRuler() {
  const pps = scale(), total = shown(), every = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((n) => n * pps >= 38) || 1200;
  setStyle(canvas, "width", total * pps + "px");
  canvas.style.setProperty("--second", pps + "px");
  const first = Math.max(0, Math.floor(scroller.scrollLeft / pps) - 2), last = Math.min(total, Math.ceil((scroller.scrollLeft + scroller.clientWidth) / pps) + 2);
  const key = [pps, total, first, last, every].join();
  if (key === rulerKey) return;
  rulerKey = key;
  const ticks = [];
  for (let s = Math.ceil(first / every) * every; s <= last; s += every) {
    if (s !== total && total % every === 0 && (total - s) * pps < 60) continue;     // the last label stands to the left of its line
    const tick = el("span", { class: "tl-tick", text: s >= 60 ? magi.duration(s) : s + " s" });
    tick.style.left = s * pps + "px";
    if (s === total) tick.classList.add("last");
    ticks.push(tick);
  }
  ruler.replaceChildren(...ticks);
}

let filmKey = "";
function drawFilm() {                                             // a finished second's own strip of four frames
  const pps = scale(), count = film.folder ? done : 0, key = [pps, film.folder].join();
  film.classList.toggle("empty", !count);
  while (film.childElementCount > count) film.lastElementChild.remove();
  setStyle(lockedLayer, "width", running && locked ? Math.min(locked, shown()) * pps + "px" : "0px");
  if (key !== filmKey) { filmKey = key; film.replaceChildren(); }
  for (let i = film.childElementCount; i < count; i += 1) {
    const image = el("img", { class: "tl-thumb", alt: "", src: `${film.folder}/chunks/${String(i).padStart(5, "0")}.jpg`, loading: "lazy", draggable: false });
    image.style.left = i * pps + "px"; image.style.width = pps - 1 + "px";
    film.append(image);
  }
}

function drawHead() {
  playhead.hidden = time === null;
  if (time !== null) setStyle(playhead, "transform", `translateX(${time * scale()}px)`);
}

function drawTools() {
  const block = Model.find(blocks, selected), open = block && block.end > locked, whole = block && block.start >= locked;
  tools.split.disabled = !(open && block.end - Math.max(block.start, locked - 1) >= 2);
  tools.merge.disabled = !(whole && blocks.length > 1);
  tools.duplicate.disabled = !block;
  tools.delete.disabled = !whole;
  tools.undo.disabled = !past.length; tools.redo.disabled = !future.length;
  setText(tools.blend.querySelector("output"), blend ? `${blend} s` : "hard cut");
  hint.hidden = blocks.length > 0 && !running;
  setText(hint, running
    ? locked >= shown() ? "Every second of this video has begun; what you change now is for the next version." : `This video is being made. It obeys what you change from second ${locked} on; the shaded part is settled.`
    : "One prompt for the whole video is enough. To tell a story second by second, press Add block or double-click here.");
}

let queued = false;
function paint() { drawBlocks(); drawRuler(); drawFilm(); drawHead(); drawTools(); if (editor) placeEditor(); }
function repaint() { if (!queued) { queued = true; requestAnimationFrame(() => { queued = false; paint(); }); } }

// --- text in place: a field over the block, so that no interactive element lies inside another
function placeEditor() {
  const block = Model.find(blocks, editor.id);
  if (!block) { closeEditor(false); return; }
  const pps = scale(), width = Math.max(190, (block.end - block.start) * pps - 2);
  setStyle(editor.field, "left", Math.max(0, Math.min(block.start * pps, shown() * pps - width)) + "px");
  setStyle(editor.field, "width", width + "px");
}
function openEditor(id, initial) {
  const block = Model.find(blocks, id);
  if (!block || block.end <= locked) return;
  closeEditor(true);
  const field = el("textarea", { class: "tl-editor", "aria-label": `Prompt for seconds ${block.start} to ${block.end}`, placeholder: "What happens here?" });
  field.value = initial === undefined ? block.prompt : initial;
  editor = { id, field };
  field.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); closeEditor(true); focusBlock(selected); }
    if (event.key === "Escape") { event.preventDefault(); closeEditor(false); focusBlock(selected); }
  });
  field.addEventListener("blur", () => closeEditor(true));
  for (const name of ["input", "change", "pointerdown", "click", "dblclick"]) field.addEventListener(name, (event) => event.stopPropagation());
  canvas.append(field);
  placeEditor(); field.focus(); field.select();
}
function closeEditor(keep) {
  if (!editor) return;
  const { id, field } = editor;
  editor = null;
  const text = field.value.trim();
  field.remove();
  if (!keep) return;
  const result = Model.write(blocks, id, text, locked);
  if (result.id !== id) { selected = result.id; hues.set(result.id, hue(id)); }
  apply(result.blocks);
}
function focusBlock(id) { const node = nodes.get(id); if (node) node.focus({ preventScroll: false }); }

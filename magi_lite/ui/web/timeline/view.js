// Drawing: the DOM is keyed by block, so that a drag over 120 blocks only moves what changed.
import { app } from "../shared/bus.js";
import { el, refill } from "../shared/dom.js";
import { count, duration } from "../shared/format.js";
import * as Model from "./model.js";
import { beginsShot, drawShot, beginning } from "./shots.js";

const COLORS = ["#3b5bdb", "#0b7285", "#2b7a3b", "#862e9c", "#a61e4d", "#b3430a", "#5f3dc4", "#1864ab"];
const TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
const COMFORTABLE = 44; // pixels per second at which blocks can be read
const WIDEST = 320;
const NARROW = 34; // pixels under which a block shows no text
const TINY = 14; // pixels under which it has no edges to take hold of, only itself

const TWO_LINES = 60; // pixels of the lane under which a block has no room for two lines above its times
const STRIP = 40; // pixels: how high the film strip's pictures are

const setStyle = (node, name, value) => {
  if (node.style[name] !== value) node.style[name] = value;
};
const setAttribute = (node, name, value) => {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
};
const setText = (node, value) => {
  if (node.textContent !== value) node.textContent = value;
};

export class View {
  /**
   * @param root the panel's element
   * @param state see state.js
   * @param seconds a function: the length that is asked for, 0 when endless
   */
  constructor(root, state, seconds) {
    Object.assign(this, { root, state, seconds });
    for (const name of [
      "bar",
      "scroll",
      "canvas",
      "ruler",
      "film",
      "movings",
      "lane",
      "locked",
      "beyond",
      "branch",
      "range",
      "marks",
      "playhead",
      "hint",
      "live",
    ])
      this[name + "Node"] = root.querySelector(".tl-" + name);
    // The video on the stage: whether it is being made, whether every second of it has begun (then the timeline is the
    // next version's), whether changes still reach it and from which second on, its length, what is made.
    this.video = {
      making: false,
      late: false,
      running: false,
      locked: 0,
      seconds: null,
      done: 0,
      folder: null,
      moving: [],
    };
    this.time = null;
    this.range = null; // { from, to }: the part of the video that plays in a loop
    this.branch = null; // the first second of its own, where the video on the stage is a version of another
    this.zoom = null; // pixels per second; null: all of it
    this.dragging = false;
    this.tools = {};
    this.nodes = new Map();
    this.hues = new Map();
    this.hueCount = 0;
    this.keys = { ruler: "", film: "", moving: "" };
    this.queued = false;
    this.onPaint = [];
    this.openMarker = () => {};
  }

  // --- measures
  /** Where the video ends. */
  get limit() {
    return this.seconds() || Infinity;
  }

  /** How far blocks may be moved: to the end, and to where some already lie beyond it. */
  get reach() {
    return Math.max(this.limit, ...this.state.blocks.map((b) => b.end));
  }

  get shown() {
    const ends = this.state.blocks.map((b) => b.end);
    if (this.seconds()) return Math.max(this.seconds(), this.video.done, ...ends);
    return Math.max(20, this.video.done + 10, ...ends.map((end) => end + 8));
  }

  get fitScale() {
    return Math.max(2, (this.scrollNode.clientWidth - 2) / this.shown);
  }

  get scale() {
    return this.zoom === null ? Math.max(this.fitScale, COMFORTABLE) : Math.max(this.zoom, this.fitScale * 0.999);
  }

  secondAt(clientX) {
    return (clientX - this.canvasNode.getBoundingClientRect().left) / this.scale;
  }

  setZoom(next, anchorX) {
    const rect = this.scrollNode.getBoundingClientRect(),
      x = anchorX === undefined ? rect.left + rect.width / 2 : anchorX,
      second = this.secondAt(x);
    this.zoom = Model.clamp(next, this.fitScale, WIDEST);
    this.paint();
    this.scrollNode.scrollLeft = second * this.scale - (x - rect.left);
    this.drawRuler();
  }

  fit() {
    this.zoom = this.fitScale;
    this.keys.ruler = "";
    this.paint();
  }

  // --- colours
  hue(id) {
    if (!this.hues.has(id)) this.hues.set(id, COLORS[this.hueCount++ % COLORS.length]);
    return this.hues.get(id);
  }

  /** A block's own colour; after a seam the colour before it fades out over the seconds that are blended. */
  colour(block, i) {
    const before = this.state.blocks[i - 1],
      length = Math.min(this.state.blend, block.end - block.start);
    if (!length || !before || before.prompt === block.prompt || beginsShot(block)) return this.hue(block.id);
    return `linear-gradient(90deg, ${this.hue(before.id)}, ${this.hue(block.id)} ${length * this.scale}px)`;
  }

  /** Draw all blocks as new ones. */
  forget() {
    for (const node of this.nodes.values()) node.remove();
    this.nodes.clear();
    this.hueCount = 0;
  }

  // --- parts
  blockNode(block) {
    let node = this.nodes.get(block.id);
    if (node) return node;
    node = el(
      "div",
      { class: "tl-block", role: "button", tabindex: "-1", "data-id": block.id },
      el("span", { class: "tl-edge tl-edge-start", "data-edge": "start" }),
      el("span", { class: "tl-label" }),
      " ",
      el("span", { class: "tl-time" }),
      el("span", { class: "tl-edge tl-edge-end", "data-edge": "end" }),
    );
    this.nodes.set(block.id, node);
    this.laneNode.append(node);
    return node;
  }

  drawBlocks() {
    const { blocks, selected, chosen, blend } = this.state,
      { locked, done } = this.video,
      scale = this.scale,
      limit = this.limit,
      alive = new Set();
    blocks.forEach((block, i) => {
      alive.add(block.id);
      const node = this.blockNode(block),
        isLocked = block.end <= locked,
        isBeyond = block.start >= limit,
        empty = !block.prompt.trim(),
        width = (block.end - block.start) * scale - 2;
      setStyle(node, "left", block.start * scale + "px");
      setStyle(node, "width", width + "px");
      setStyle(node, "background", this.colour(block, i));
      node.classList.toggle("selected", chosen.has(block.id));
      node.classList.toggle("locked", isLocked);
      node.classList.toggle("part", block.start < locked && !isLocked);
      node.classList.toggle("beyond", isBeyond);
      node.classList.toggle("narrow", width < NARROW);
      node.classList.toggle("tiny", width < TINY);
      node.classList.toggle(
        "blended",
        blend > 0 && i > 0 && blocks[i - 1].prompt !== block.prompt && !beginsShot(block),
      );
      drawShot(node, block);
      node.classList.toggle("empty", empty);
      setText(node.children[1], empty ? "Click to write what happens" : block.prompt.trim());
      const times = `${block.start}–${block.end} s`,
        fate = isLocked ? (block.end <= done ? " · made" : " · begun") : isBeyond ? " · left out" : "";
      setText(node.children[2], times + fate + beginning(block));
      const title = `${times}${fate}${beginning(block)}: ${block.prompt}`;
      if (node.title !== title) node.title = title;
      setAttribute(node, "aria-pressed", String(chosen.has(block.id)));
      setAttribute(node, "tabindex", block.id === selected || (!selected && i === 0) ? "0" : "-1");
    });
    for (const [id, node] of this.nodes)
      if (!alive.has(id)) {
        node.remove();
        this.nodes.delete(id);
      }
    let before = null;
    for (const block of blocks) {
      // DOM order is reading order
      const node = this.nodes.get(block.id),
        wanted = before ? before.nextSibling : this.laneNode.firstChild;
      if (node !== wanted && !this.dragging) this.laneNode.insertBefore(node, wanted);
      before = node;
    }
  }

  drawRuler() {
    const scale = this.scale,
      total = this.shown,
      every = TICKS.find((n) => n * scale >= 38) || 1200,
      { scrollLeft, clientWidth } = this.scrollNode;
    setStyle(this.canvasNode, "width", total * scale + "px");
    this.canvasNode.style.setProperty("--second", scale + "px");
    const first = Math.max(0, Math.floor(scrollLeft / scale) - 2),
      last = Math.min(total, Math.ceil((scrollLeft + clientWidth) / scale) + 2),
      key = [scale, total, first, last, every].join();
    if (key === this.keys.ruler) return;
    this.keys.ruler = key;
    const ticks = [];
    for (let s = Math.ceil(first / every) * every; s <= last; s += every) {
      // The last label stands to the left of its line.
      if (s !== total && total % every === 0 && (total - s) * scale < 60) continue;
      const tick = el("span", { class: "tl-tick", text: s >= 60 ? duration(s) : s + " s" });
      tick.style.left = s * scale + "px";
      if (s === total) tick.classList.add("last");
      ticks.push(tick);
    }
    this.rulerNode.replaceChildren(...ticks);
  }

  /** A finished second's own strip of four frames. */
  drawFilm() {
    const scale = this.scale,
      { folder, done } = this.video,
      film = this.filmNode,
      made = folder ? done : 0,
      key = [scale, folder].join();
    film.classList.toggle("empty", !made);
    while (film.childElementCount > made) film.lastElementChild.remove();
    if (key !== this.keys.film) {
      this.keys.film = key;
      film.replaceChildren();
    }
    for (let i = film.childElementCount; i < made; i += 1) {
      const src = `${folder}/chunks/${String(i).padStart(5, "0")}.jpg`;
      const image = el("img", { class: "tl-thumb", alt: "", src, loading: "lazy", draggable: false });
      image.style.left = i * scale + "px";
      image.style.width = scale - 1 + "px";
      film.append(image);
    }
  }

  /** Seconds in the making, as they look so far: strips of a few moments, which move. */
  drawMoving() {
    const scale = this.scale,
      moving = this.video.moving.filter(({ second }) => second >= this.video.done && second < this.shown),
      key = JSON.stringify([scale, moving.map(({ second, url }) => [second, url.length, url.slice(-40)])]);
    this.filmNode.classList.toggle("empty", !moving.length && !this.filmNode.childElementCount);
    if (key === this.keys.moving) return;
    this.keys.moving = key;
    this.movingsNode.replaceChildren(
      ...moving.map(({ second, moments, aspect, url }) => {
        const node = el("span", { class: "tl-moving", "data-second": String(second) });
        node.style.left = second * scale + "px";
        node.style.width = Math.min(scale - 1, STRIP * aspect) + "px";
        node.style.backgroundImage = `url("${url}")`;
        node.style.backgroundSize = `${moments * 100}% 100%`;
        return node;
      }),
    );
  }

  /** The shaded parts: what can no longer change, and what lies beyond the end. */
  drawShades() {
    const { locked, running } = this.video,
      scale = this.scale,
      rest = this.seconds() ? this.shown - this.seconds() : 0;
    setStyle(this.lockedNode, "width", running && locked ? Math.min(locked, this.shown) * scale + "px" : "0px");
    this.beyondNode.hidden = rest <= 0;
    setStyle(this.beyondNode, "left", (this.shown - rest) * scale + "px");
    setStyle(this.beyondNode, "width", rest * scale + "px");
  }

  /** Markers over the ruler; `openMarker` is called with the number of the one that is pressed. */
  drawMarkers() {
    const { markers } = this.state,
      key = JSON.stringify([markers, this.scale]);
    if (key === this.keys.marks) return;
    this.keys.marks = key;
    refill(
      this.marksNode,
      ...markers.map((mark, i) => {
        const label = mark.name || "Marker",
          time = `${Math.round(mark.at * 100) / 100} s`,
          node = el(
            "button",
            {
              type: "button",
              class: "tl-mark",
              title: `${label}, ${time}`,
              "aria-label": `Marker at ${time}: ${label}`,
              onclick: () => this.openMarker(i),
            },
            el("span", { text: mark.name }),
          );
        node.style.left = mark.at * this.scale + "px";
        return node;
      }),
    );
  }

  drawBranch() {
    const at = this.video.folder ? this.branch : null;
    this.branchNode.hidden = at === null;
    if (at === null) return;
    setStyle(this.branchNode, "left", at * this.scale + "px");
    const title = `This version branches off here: seconds before ${at} are those of the version that it was made from`;
    if (this.branchNode.title !== title) this.branchNode.title = title;
  }

  drawRange() {
    this.rangeNode.hidden = !this.range;
    if (!this.range) return;
    setStyle(this.rangeNode, "left", this.range.from * this.scale + "px");
    setStyle(this.rangeNode, "width", (this.range.to - this.range.from) * this.scale + "px");
  }

  /** What a split would cut, as {id, at}: the selected block, else the one under the playhead. Null: nothing. */
  cut() {
    const { state } = this,
      at = this.time === null ? null : Math.round(this.time),
      inside = (block) => at !== null && block.start < at && at < block.end,
      block = state.selected ? state.find() : state.blocks.find(inside);
    if (!block || state.chosen.size > 1 || block.end - Math.max(block.start, this.video.locked - 1) < 2) return null;
    return { id: block.id, at: inside(block) ? at : null };
  }

  drawHead() {
    const canCut = this.cut() !== null;
    if (this.tools.split && this.tools.split.disabled === canCut) this.tools.split.disabled = !canCut;
    this.playheadNode.hidden = this.time === null;
    if (this.time !== null) setStyle(this.playheadNode, "transform", `translateX(${this.time * this.scale}px)`);
  }

  drawTools() {
    const { state, tools, video } = this,
      many = state.chosen.size > 1,
      block = state.find(),
      whole = block && block.start >= video.locked;
    tools.merge.disabled = many || !(whole && state.blocks.length > 1);
    tools.duplicate.disabled = many || !block;
    tools.delete.disabled = !whole && !many;
    tools.undo.disabled = !state.past.length;
    tools.redo.disabled = !state.future.length;
    setText(tools.blend.querySelector("output"), state.blend ? `${state.blend} s` : "none");
    const hint = this.hintText();

    setText(this.hintNode, hint);
  }

  hintText() {
    const { locked, running, late } = this.video,
      { blocks } = this.state;
    if (late) return "Every second of this video has begun. Changes apply to the next version.";
    if (running) return `Changes apply from second ${locked} on; the shaded part can no longer change.`;
    const beyond = Model.countBeyond(blocks, this.limit);
    if (beyond)
      return (
        `${count(beyond, "block")} ${beyond === 1 ? "reaches" : "reach"} beyond second ${this.limit}; ` +
        "the hatched part is kept here and left out of the video. Make the video longer to include it."
      );
    const several = this.state.chosen.size;
    if (several > 1) return `${several} blocks are selected: drag them together, copy or delete them.`;
    if (blocks.length) return "";
    return "One prompt for the whole video is enough. For a story, press Add block or double-click here.";
  }

  paint() {
    this.state.show();
    this.root.dataset.seconds = String(this.seconds());
    this.drawBlocks();
    this.drawRuler();
    this.drawFilm();
    this.drawMoving();
    this.drawShades();
    this.drawBranch();
    this.drawMarkers();
    this.drawRange();
    this.drawHead();
    this.drawTools();
    for (const draw of this.onPaint) draw();
  }

  repaint() {
    if (this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.paint();
    });
  }

  /** Everything was measured anew. */
  resized() {
    this.laneNode.classList.toggle("low", this.laneNode.clientHeight < TWO_LINES);
    this.keys = { ruler: "", film: "", moving: "" };
    this.repaint();
  }

  // --- focus and speech
  focusBlock(id) {
    const node = this.nodes.get(id);
    if (node) node.focus({ preventScroll: false });
  }

  say(text) {
    this.liveNode.textContent = text;
  }

  /** The video on the stage, as the server's state tells of it. */
  follow(job) {
    const attached = job && app.attached === job.id,
      making = Boolean(attached && job.state === "running"),
      late = making && job.seconds !== null && job.locked >= job.seconds;
    this.video = {
      making,
      late,
      running: making && !late,
      locked: making && !late ? job.locked : 0,
      seconds: attached ? job.seconds : null,
      done: attached ? job.done : 0,
      folder: attached ? job.folder_url : null,
      moving: making ? job.moving : [],
    };
    if (!this.dragging) this.repaint();
  }
}

// Shots: a block may begin with a hard cut or a picture; both forget what came before. A mark on the block, its
// thumbnail, its menu, and pictures that are dropped on it.
import { NO_ANSWER, emit, onDocument, toast } from "../shared/bus.js";
import { el, keepInside } from "../shared/dom.js";
import { redraw } from "../shared/pictures.js";

const KEYS = { shot: "X", picture: "P" };
/** Pictures of which browsers know no type. */
const UNTYPED = /\.(jp2|heic|heif|tiff?|tga|ppm|avif|jfif)$/i;
/** Tools that a block's menu offers as well. */
const TOOLS = [
  ["split", "Split", "S"],
  ["merge", "Merge with the next", "M"],
  ["duplicate", "Duplicate", "D"],
  ["delete", "Delete", "Del"],
];

/** What of a block goes to the server, in the server's own order. */
export function segment({ start, end, prompt, cut, image, image_sha256 }) {
  const found = { start, end, prompt };
  if (cut) found.cut = true;
  if (image) found.image = image;
  if (image && image_sha256) found.image_sha256 = image_sha256;
  return found;
}

/** Whether nothing before a block is seen by it. */
export const beginsShot = (block) => Boolean(block.start && (block.cut || block.image));

/** The blocks with other marks on one that has not begun. */
export const marked = (blocks, id, marks, locked) =>
  blocks.map((b) => (b.id === id && b.start >= locked ? { id, ...segment({ ...b, ...marks }) } : b));

const names = new Map(); // path -> what the user called the file
/** What a picture is called; what is kept under its checksum alone has no name. */
function nameOf(path) {
  const file = path
    .split(/[\\/]/)
    .pop()
    .replace(/^[0-9a-f]{12}-/, "");
  return names.get(path) || (/^[0-9a-f]{20}\.\w+$/.test(file) ? "a picture" : file);
}
const address = (path) => "/gradio_api/file=" + path.split("/").map(encodeURIComponent).join("/");

/** How a block begins, to stand behind its times. */
export function beginning(block) {
  if (block.image) return ` · from ${nameOf(block.image)}`;
  return beginsShot(block) ? " · cut" : "";
}

/** Mark a block's element: a cut's edge, and a thumbnail of its picture. */
export function drawShot(node, block) {
  node.classList.toggle("shot", beginsShot(block));
  let thumb = node.querySelector(".tl-picture");
  if (!block.image) {
    if (thumb) thumb.remove();
    return;
  }
  if (!thumb) {
    thumb = el("img", { class: "tl-picture", alt: "", draggable: false });
    node.append(thumb);
  }
  const src = address(block.image);
  if (thumb.dataset.from === src) return;
  thumb.dataset.from = src; // what is shown can be what the app has drawn of it
  thumb.setAttribute("src", src);
}

/**
 * The menu of a block, and its pictures.
 *
 * @param apply takes the blocks after an edit. @param select selects a block and gives it the focus.
 * @returns actions for the keys.
 */
export function mountShots({ view, state, server, upload, apply, select }) {
  const lane = view.laneNode;
  const picker = el("input", {
    type: "file",
    accept: "image/*,.tif,.tiff,.heic,.heif,.jp2,.tga",
    hidden: true,
    tabindex: "-1",
    "aria-label": "Picture for the block",
  });
  view.barNode.append(picker);
  let wanted = null,
    menu = null;

  const open = (block) => block && block.start >= view.video.locked;
  function set(id, marks, words) {
    apply(marked(state.blocks, id, marks, view.video.locked));
    view.focusBlock(id);
    view.say(words);
  }
  function toggleCut(id = state.selected) {
    const block = state.find(id);
    if (!open(block)) return;
    if (!block.start) view.say("The first block begins the video anyway.");
    else set(id, { cut: !block.cut }, block.cut ? "No cut" : "Cut: a new shot begins here");
  }
  function choose(id = state.selected) {
    if (!open(state.find(id))) return;
    wanted = id;
    picker.value = "";
    picker.click();
  }
  const takeOff = (id) => set(id, { image: null, image_sha256: null }, "Picture removed");

  async function bring(file, id) {
    let answer;
    try {
      const { path } = await upload(file);
      answer = path ? await server.look_at({ path, name: file.name }) : null;
    } catch {
      answer = null;
    }
    if (!answer || answer.error) {
      toast(answer ? answer.error : NO_ANSWER, "error");
      return;
    }
    names.set(answer.source.path, file.name);
    if (answer.source.kind !== "image") toast(`${file.name} is a clip; a block starts from a picture.`, "error");
    else if (open(state.find(id)))
      set(id, { image: answer.source.path, image_sha256: null }, `Starts from ${file.name}`);
    else toast("This block has begun meanwhile; its picture was not changed.", "error");
  }
  keepInside(picker).addEventListener("change", () => {
    if (picker.files[0] && wanted) bring(picker.files[0], wanted);
  });

  /** A picture of a kind that the browser cannot draw. */
  function failed({ target }) {
    const node = target.closest(".tl-block"),
      block = node && state.find(node.dataset.id);
    if (block && block.image) redraw(target, block.image, server);
  }
  lane.addEventListener("error", failed, true); // it does not bubble

  // --- pictures dropped on a block
  /** Of some kinds, such as JPEG 2000, the browser knows no type, and their names show only when they are dropped. */
  const mayBePicture = (item) => {
    const file = item.getAsFile && item.getAsFile();
    return item.type ? item.type.startsWith("image/") : !file || UNTYPED.test(file.name);
  };
  /** The block that a dragged picture is over; the event is ours then, and no longer the whole page's. */
  const taken = (event) => {
    const items = [...((event.dataTransfer && event.dataTransfer.items) || [])],
      node = event.target.closest && event.target.closest(".tl-block");
    if (!node || !items.some((item) => item.kind === "file" && mayBePicture(item))) return null;
    event.preventDefault();
    return node;
  };
  let over = null;
  const mark = (node) => {
    if (over && over !== node) over.classList.remove("over");
    if (node) node.classList.add("over");
    over = node;
  };
  lane.addEventListener("dragover", (event) => mark(taken(event)));
  lane.addEventListener("dragleave", () => mark(null));
  lane.addEventListener("drop", (event) => {
    const node = taken(event);
    mark(null);
    if (!node) return;
    if (open(state.find(node.dataset.id))) bring(event.dataTransfer.files[0], node.dataset.id);
    else toast("This block has begun; its picture can no longer change.", "error");
  });

  // --- the menu
  function close(focus) {
    if (!menu) return;
    const { box, id } = menu;
    menu = null;
    box.remove();
    if (focus) view.focusBlock(id);
  }
  /** @param x where the pointer is; without one it opens at the block's beginning. */
  function show(id = state.selected, x = null) {
    const block = state.find(id),
      node = view.nodes.get(id);
    if (!block || !node) return;
    close(false);
    const item = (text, key, run, extra = {}) =>
      el(
        "button",
        {
          type: "button",
          role: "menuitem",
          tabindex: "-1",
          onclick: () => {
            close(true);
            run();
          },
          ...extra,
        },
        el("span", { text }),
        key ? el("kbd", { text: key }) : null,
      );
    const { making, done } = view.video,
      made = !making && block.start < done;
    const items = [
      made &&
        item(`Redo from second ${block.start}`, "", () => emit("redo", { block: segment(block) }), {
          "data-action": "redo-block",
        }),
      item("Hard cut: a new shot begins here", KEYS.shot, () => toggleCut(id), {
        role: "menuitemcheckbox",
        "aria-checked": String(Boolean(block.cut)),
        "data-action": "cut-block",
        disabled: !open(block) || !block.start,
      }),
      item(block.image ? "Another picture to start from" : "Start from a picture", KEYS.picture, () => choose(id), {
        "data-action": "picture-block",
        disabled: !open(block),
      }),
      block.image &&
        item("Remove the picture", "", () => takeOff(id), { "data-action": "unpicture-block", disabled: !open(block) }),
      ...TOOLS.map(([tool, text, key]) =>
        item(text, key, () => view.tools[tool].click(), {
          "data-action": `${tool}-block`,
          disabled: view.tools[tool].disabled,
        }),
      ),
    ].filter(Boolean);
    const box = el("div", { class: "tl-menu", role: "menu", "aria-label": "Block" }, ...items);
    box.addEventListener("keydown", (event) => {
      const usable = items.filter((one) => !one.disabled),
        at = usable.indexOf(document.activeElement),
        to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
      event.stopPropagation();
      if (event.key === "Escape" || event.key === "Tab") close(true);
      else if (to === undefined) return;
      else usable[(to + usable.length) % usable.length].focus();
      event.preventDefault();
    });
    view.root.append(box);
    const rect = node.getBoundingClientRect(),
      left = Math.max(8, Math.min(x ?? rect.left, window.innerWidth - box.offsetWidth - 8));
    box.style.left = left + "px";
    box.style.top = Math.max(8, rect.top - box.offsetHeight - 6) + "px";
    menu = { box, id };
    const first = items.find((one) => !one.disabled);
    if (first) first.focus();
  }
  onDocument(lane, "pointerdown", (event) => {
    if (menu && !menu.box.contains(event.target)) close(false);
  });
  lane.addEventListener("contextmenu", (event) => {
    const node = event.target.closest(".tl-block");
    if (!node) return;
    event.preventDefault();
    select(node.dataset.id, true);
    show(node.dataset.id, event.clientX || null); // the menu key has no place
  });
  return { shot: () => toggleCut(), picture: () => choose(), menu: () => show() };
}

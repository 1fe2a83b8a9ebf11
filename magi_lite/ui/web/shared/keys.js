// Every key of the page in one table: it finds the action, and it draws the sheet that "?" shows.
import { onDocument } from "./bus.js";
import { button, el, openDialog } from "./dom.js";

const VIDEO = "The video",
  BLOCKS = "Blocks of the timeline",
  SELECTED = "The selected block (with the focus on it)",
  PAGE = "Anywhere";

/** [group, keys, what it does, action, argument]. Keys of SELECTED count only where a block has the focus. */
const TABLE = [
  [VIDEO, ["Space"], "play or pause", "play"],
  [VIDEO, ["J"], "play backwards; again: faster", "shuttle", -1],
  [VIDEO, ["K"], "stop", "shuttle", 0],
  [VIDEO, ["L"], "play; again: faster", "shuttle", 1],
  [VIDEO, ["ArrowLeft"], "one frame back", "frames", -1],
  [VIDEO, ["ArrowRight"], "one frame forward", "frames", 1],
  [VIDEO, ["Shift+ArrowLeft"], "one second back", "seconds", -1],
  [VIDEO, ["Shift+ArrowRight"], "one second forward", "seconds", 1],
  [VIDEO, ["ArrowUp"], "to the edge of a block before", "edge", -1],
  [VIDEO, ["ArrowDown"], "to the next edge of a block", "edge", 1],
  [VIDEO, ["Home"], "to the beginning", "ends", -1],
  [VIDEO, ["End"], "to the end", "ends", 1],
  [VIDEO, ["I"], "loop from here", "range", "from"],
  [VIDEO, ["O"], "loop to here", "range", "to"],
  [VIDEO, ["Alt+X"], "loop over all of it", "range", null],
  [VIDEO, ["F"], "full screen", "fullscreen"],
  [VIDEO, ["C"], "compare with another version", "compare"],
  [BLOCKS, ["N"], "new block", "add"],
  [BLOCKS, ["B", "S"], "split at the playhead; a selected block elsewhere: in its middle", "split"],
  [BLOCKS, ["M"], "merge with the next", "merge"],
  [BLOCKS, ["D"], "duplicate", "duplicate"],
  [BLOCKS, ["Delete", "Backspace"], "delete", "delete"],
  [BLOCKS, ["Ctrl+A"], "select all (Shift+click: a range, Ctrl+click: one more)", "all"],
  [BLOCKS, ["Ctrl+C"], "copy", "copy"],
  [BLOCKS, ["Ctrl+X"], "cut", "cut"],
  [BLOCKS, ["Ctrl+V"], "paste at the playhead", "paste"],
  [BLOCKS, ["R"], "ripple: blocks behind an edit move with it", "ripple"],
  [BLOCKS, ["Shift+M"], "marker at the playhead", "marker"],
  [BLOCKS, ["Ctrl+Z"], "undo", "undo"],
  [BLOCKS, ["Ctrl+Shift+Z", "Ctrl+Y"], "redo", "redo"],
  [BLOCKS, ["+", "="], "zoom in", "zoomin"],
  [BLOCKS, ["-"], "zoom out", "zoomout"],
  [BLOCKS, ["0"], "zoom to fit", "fit"],
  [SELECTED, ["ArrowLeft"], "previous block", "step", -1],
  [SELECTED, ["ArrowRight"], "next block", "step", 1],
  [SELECTED, ["Home"], "first block", "step", -Infinity],
  [SELECTED, ["End"], "last block", "step", Infinity],
  [SELECTED, ["Enter", "F2"], "write its prompt", "write"],
  [SELECTED, ["X"], "begin a new shot with it (a hard cut), or not", "shot"],
  [SELECTED, ["P"], "start it from a picture", "picture"],
  [SELECTED, ["ContextMenu", "Shift+F10"], "its menu", "menu"],
  [SELECTED, ["Alt+ArrowLeft"], "move it left", "moveBy", -1],
  [SELECTED, ["Alt+ArrowRight"], "move it right", "moveBy", 1],
  [SELECTED, ["Shift+ArrowLeft"], "move its end left", "endBy", -1],
  [SELECTED, ["Shift+ArrowRight"], "move its end right", "endBy", 1],
  [SELECTED, ["Alt+Shift+ArrowLeft"], "move its start left", "startBy", -1],
  [SELECTED, ["Alt+Shift+ArrowRight"], "move its start right", "startBy", 1],
  [SELECTED, ["Escape"], "cancel a drag (held Alt: the other blocks stay where they are)", null],
  [PAGE, ["Ctrl+Enter"], "generate; while a video is made: apply the prompt", "generate"],
  [PAGE, ["?"], "this list", "keys"],
];
const NAMES = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  Delete: "Del",
  Escape: "Esc",
  ContextMenu: "Menu",
};
const actions = {};

/** Let keys reach these actions; each gets the argument of its row. */
export const provide = (more) => Object.assign(actions, more);

/** The letter of a pressed key; on a keyboard of another script the one that stands there on a Latin one. */
function letter({ key, code }) {
  const place = /^Key([A-Z])$/.exec(code || "");
  return place && key > "\u02ff" ? place[1] : key.toUpperCase();
}

/** A pressed key as the table writes it. */
export function combination(event) {
  const key = event.key === " " ? "Space" : event.key.length === 1 ? letter(event) : event.key,
    isSign = key.length === 1 && key.toLowerCase() === key.toUpperCase(); // "?" needs Shift on most keyboards
  const held = [
    event.ctrlKey || event.metaKey ? "Ctrl" : null,
    event.altKey ? "Alt" : null,
    event.shiftKey && !isSign ? "Shift" : null,
  ];
  return [...held.filter(Boolean), key].join("+");
}

/** The row of the table for a pressed key, or undefined. */
export function rowFor(keys, onBlock) {
  const fits = (row) => row[1].includes(keys);
  const own = onBlock && TABLE.find((row) => row[0] === SELECTED && fits(row));
  return own || TABLE.find((row) => row[0] !== SELECTED && fits(row));
}

const isText = (node) =>
  node.isContentEditable ||
  node.tagName === "TEXTAREA" ||
  (node.tagName === "INPUT" && !["checkbox", "radio", "button", "file", "range"].includes(node.type));
/** Keys that a control with the focus needs for itself. */
function ownKey(node, key) {
  if (node.closest(".tl-block, .wa-slider")) return false; // a position in the video is what the keys move
  if (node.closest("button, a[href], [role=button], summary")) return ["Space", "Enter"].includes(key);
  if (node.closest("[role=tab], [role=listbox], [role=option], input, select, video"))
    return key.length > 1 && !key.startsWith("Ctrl");
  return false;
}

function press(event) {
  const target = event.target,
    keys = combination(event);
  if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
  if (isText(target) && keys !== "Ctrl+Enter") return;
  if (ownKey(target, keys)) return;
  const row = rowFor(keys, Boolean(target.closest && target.closest(".tl-lane")));
  if (!row || !actions[row[3]]) return;
  if (actions[row[3]](row[4]) === false) return;
  event.preventDefault();
  event.stopPropagation();
}

const shown = (keys) =>
  keys === "+"
    ? keys
    : keys
        .split("+")
        .map((name) => NAMES[name] || name)
        .join(" + ");

/** The sheet of all keys. */
export function showKeys() {
  const box = el("dialog", { class: "mg-dialog wide mg-keys", "aria-label": "Keys" });
  const groups = [...new Set(TABLE.map((row) => row[0]))].map((group) =>
    el(
      "section",
      {},
      el("h4", { text: group }),
      el(
        "dl",
        {},
        ...TABLE.filter((row) => row[0] === group).flatMap((row) => [
          el("dt", {}, ...row[1].flatMap((keys, i) => [i ? " or " : null, el("kbd", { text: shown(keys) })])),
          el("dd", { text: row[2] }),
        ]),
      ),
    ),
  );
  const close = button("Close", "close", () => box.close(), { iconOnly: true });
  box.append(
    el("div", { class: "mg-head" }, el("h3", { text: "Keys" }), close),
    el("div", { class: "mg-columns" }, ...groups),
  );
  openDialog(box);
}

/** Listen for as long as `element` is part of the page. */
export function mountKeys(element) {
  provide({ keys: showKeys });
  onDocument(element, "keydown", press);
}

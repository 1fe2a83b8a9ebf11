// One video of the light table: its own shape, played while the pointer rests on it, with a star and a tick.
import { button, el, keepInside } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { icon } from "../shared/icons.js";
import { tileWidth, when } from "./selection.js";

const REST = 160; // milliseconds that a pointer rests before the video plays
const ROW = 150; // any number: what is wanted is how wide a tile is against it

/** @param acts {open(item), choose(item, event), star(item), expand(item)}; what is left out is not offered. */
export function tile(item, acts) {
  const width = tileWidth(item.width, item.height, ROW),
    many = item.versions.length;
  const picture = el("span", {
    class: "ga-thumb",
    style: item.thumbnail && `background-image:url("${item.thumbnail}")`,
  });
  const face = el(
    "button",
    {
      type: "button",
      class: "ga-item",
      "data-video": item.id,
      "aria-label": item.title,
      "data-action": "detail",
      onclick: (event) =>
        event.ctrlKey || event.metaKey || event.shiftKey ? acts.choose(item, event) : acts.open(item),
    },
    picture,
  );
  const tick = el("input", {
    type: "checkbox",
    class: "mg-check ga-tick",
    "aria-label": `Select ${item.title}`,
    "data-action": "select",
    onclick: (event) => {
      event.stopPropagation();
      acts.choose(item, event);
    },
  });
  keepInside(tick);
  const star = acts.star
    ? button(item.starred ? `Remove the star of ${item.title}` : `Star ${item.title}`, "star", () => acts.star(item), {
        iconOnly: true,
        action: "star",
        class: "ga-star" + (item.starred ? " on" : ""),
        title: item.starred ? "Remove the star" : "Star",
      })
    : null;
  if (star) star.setAttribute("aria-pressed", String(item.starred));
  const stack =
    many > 1 && acts.expand
      ? button(`Show ${many} versions of ${item.title}`, "branch", () => acts.expand(item), {
          text: String(many),
          action: "expand",
          class: "ga-stack",
          title: `${many} versions`,
        })
      : null;
  const parts = [item.status === "finished" ? null : item.status, `${item.done} s`, bytes(item.bytes)].filter(Boolean);
  const node = el(
    "div",
    { class: "ga-tile" + (many > 1 && acts.expand ? " stacked" : ""), role: "listitem", "data-tile": item.id },
    face,
    tick,
    star,
    stack,
    el(
      "span",
      { class: "ga-caption" },
      el("span", { class: "ga-title", text: item.title, title: item.title }),
      el(
        "span",
        { class: "ga-facts" },
        el("span", { text: when(new Date(item.created), new Date()), title: new Date(item.created).toLocaleString() }),
        el("span", { text: parts.join(" · ") }),
      ),
    ),
  );
  node.style.setProperty("--wide", `${width / ROW}px`);
  node.style.setProperty("--shape", `${item.width} / ${item.height}`);
  playOnHover(node, face, item);
  return node;
}

function playOnHover(node, face, item) {
  let timer = null,
    film = null;
  const stop = () => {
    clearTimeout(timer);
    if (film) {
      film.pause();
      film.removeAttribute("src");
      film.load();
      film.remove();
    }
    film = null;
  };
  node.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "touch" || !item.video_url) return;
    timer = setTimeout(() => {
      film = el("video", { class: "ga-film", src: item.video_url, muted: true, loop: true, playsInline: true });
      film.setAttribute("aria-hidden", "true");
      face.append(film);
      film.play().catch(() => {});
    }, REST);
  });
  node.addEventListener("pointerleave", stop);
}

/** What stands in the place of a list without videos. */
export const nothing = (text) => [icon("image"), el("div", { text })];

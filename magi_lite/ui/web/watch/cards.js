// Before the first video: examples, of which one click makes a video.
import { on } from "../shared/bus.js";
import { el } from "../shared/dom.js";
import { count } from "../shared/format.js";

const COLORS = ["#3b5bdb", "#0b7285", "#862e9c", "#a61e4d", "#b3430a", "#2b7a3b"];

/** @param examples [{title, name, seconds, blocks: [{start, end, prompt}], moving}]. @param choose gets a title. */
export function mountCards(place, examples, choose) {
  let chosen = false;
  const strip = ({ blocks, seconds }) =>
    el(
      "span",
      { class: "wa-strip", "aria-hidden": "true" },
      ...blocks.map((block, i) =>
        el("i", { style: `flex:${(block.end - block.start) / seconds};background:${COLORS[i % COLORS.length]}` }),
      ),
    );
  function picture({ name, moving }) {
    if (!moving) return null;
    const src = new URL(`../examples/${name}.webp`, import.meta.url).href;
    return el("img", { class: "wa-moving", src, alt: "", loading: "lazy", draggable: false });
  }
  const story = ({ blocks }) => blocks.map((block) => block.prompt).join(" → ");
  const card = (example) =>
    el(
      "button",
      {
        type: "button",
        class: "wa-card",
        title: story(example),
        "data-server": true,
        "data-example": example.name,
        onclick() {
          chosen = true;
          choose(example.title);
        },
      },
      picture(example),
      el("span", { class: "wa-card-title", text: example.title.replace(/ \(.*\)$/, "") }),
      el("span", { class: "wa-card-note", text: `${example.seconds} s, ${count(example.blocks.length, "block")}` }),
      strip(example),
    );
  const title = el("b", { text: "Make your first video" });
  // Who has made some is not asked for the first one. The gallery's version begins with their number.
  on(place, "state", ({ gallery }) => {
    const words = Number.parseInt(gallery, 10) ? "Make another video" : "Make your first video";
    if (title.textContent !== words) title.textContent = words;
  });
  place.append(
    title,
    el("span", { text: "Choose an example, or write a prompt and press Generate." }),
    el("div", { class: "wa-cards" }, ...examples.map(card)),
  );
  // The example is in the form: now it is made.
  on(place, "filled", () => {
    if (!chosen) return;
    chosen = false;
    setTimeout(() => document.querySelector("#mg-generate").click(), 50);
  });
}

// Where there are several cards: each with its job, its memory and a small stage of its own, and the choice of a card.
import { emit } from "../shared/bus.js";
import { button, el, keepInside, refill } from "../shared/dom.js";

/** What is to be seen of a job: its preview, or the oldest second of those that move, a strip of moments. */
function take(held, shown) {
  const moving = (shown.moving || [])[0];
  if (shown.preview) Object.assign(held, { url: shown.preview, aspect: null });
  else if (moving) Object.assign(held, { url: moving.url, aspect: moving.aspect });
  held.version = shown.preview_version;
}

/**
 * Cards above the queue.
 * @param list where they go.
 * @param status the server's function; a job's picture comes only if it is newer than what is known.
 */
export function mountLanes(list, status) {
  let key = "";
  const pictures = new Map(); // job -> { version, url, aspect of a strip's one moment }
  const parts = new Map(); // card -> its nodes

  function lane(one) {
    const picture = el("img", { class: "qu-picture", alt: "", hidden: true }),
      fill = el("i"),
      bar = el("div", { class: "mg-bar thin" }, fill),
      memory = el("div", { class: "mg-muted qu-memory", text: one.memory }),
      watch = one.job
        ? button(`Watch card ${one.card}`, "image", () => emit("show", { job: one.job, open: true }), {
            text: "Watch",
            action: "watch-card",
          })
        : null;
    parts.set(one.card, { picture, fill, memory });
    return el(
      "li",
      { class: "qu-card", "data-card": one.card },
      el("div", { class: "mg-row" }, el("b", { text: `Card ${one.card}` }), el("span", { class: "mg-grow" }), watch),
      one.job ? picture : null,
      el("div", { class: "qu-title", text: one.title || (one.started ? "Ready" : "Starts with a job") }),
      memory,
      one.job ? bar : null,
    );
  }

  async function fetchPicture(one, state) {
    const held = pictures.get(one.job) || { version: 0, url: null };
    pictures.set(one.job, held);
    if (one.preview_version <= held.version || held.asking) return;
    if (state.shown && state.shown.id === one.job) {
      take(held, state.shown);
      return;
    }
    held.asking = true;
    try {
      const answer = await status({ job: one.job, version: state.version, preview: held.version });
      if (answer.shown) take(held, answer.shown);
    } catch {
      // The page says elsewhere that the app does not answer; the next state asks again.
    } finally {
      held.asking = false;
    }
  }

  return function draw(state) {
    const lanes = state.lanes || [];
    list.hidden = !lanes.length;
    const next = JSON.stringify(lanes.map((one) => [one.card, one.job, one.title, one.started]));
    if (next !== key) {
      key = next;
      parts.clear();
      refill(list, ...lanes.map(lane));
    }
    const running = new Set(lanes.map((one) => one.job));
    for (const job of [...pictures.keys()]) if (!running.has(job)) pictures.delete(job);
    for (const one of lanes) {
      const { picture, fill, memory } = parts.get(one.card);
      if (memory.textContent !== one.memory) memory.textContent = one.memory;
      if (!one.job) continue;
      fill.style.width = (one.fraction || 0) * 100 + "%";
      if (list.offsetParent !== null) fetchPicture(one, state);
      const held = pictures.get(one.job);
      picture.hidden = !(held && held.url);
      if (held && held.url && picture.src !== held.url) {
        picture.src = held.url;
        picture.classList.toggle("qu-strip", Boolean(held.aspect));
        picture.style.aspectRatio = held.aspect || "";
      }
    }
  };
}

/** What ties a job to a card, or leaves it to whichever is free. `tie` is called with the card's name. */
export function cardChoice(job, lanes, tie) {
  const choice = el(
    "select",
    {
      class: "qu-choice",
      "aria-label": `Card for ${job.title}`,
      title: "The card that makes this video",
      onchange: () => tie(choice.value),
    },
    el("option", { value: "", text: "Any card" }),
    ...lanes.map((one) => el("option", { value: one.card, text: `Card ${one.card}` })),
  );
  choice.value = job.card;
  return keepInside(choice);
}

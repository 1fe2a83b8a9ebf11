// Versions of one video as tabs over the stage, and two of them compared in step: by a wipe, or side by side.
import { answerOf, app, call, emit, on } from "../shared/bus.js";
import { askFor, button, el, field, keepInside, refill } from "../shared/dom.js";
import { provide } from "../shared/keys.js";

const DRIFT = 0.06; // seconds that two videos may be apart
const STEP = 0.02; // of the stage's width, by key

/** @param versionsOf answers a job's versions. @param label names, stars or chooses one: server.label. */
export function mountVersions({ element, tabs, stage, video, picture, versionsOf, label: setLabel }) {
  const other = el("video", {
      class: "wa-video wa-other",
      muted: true,
      playsInline: true,
      "aria-label": "The other version",
    }),
    layer = el("div", { class: "wa-layer", hidden: true }, other),
    handle = el("div", {
      class: "wa-handle",
      role: "slider",
      tabindex: "0",
      "aria-label": "Wipe between the versions",
    }),
    left = el("span", { class: "wa-side left" }),
    right = el("span", { class: "wa-side right" });
  for (const [name, value] of [
    ["aria-valuemin", "0"],
    ["aria-valuemax", "100"],
  ])
    handle.setAttribute(name, value);
  handle.hidden = left.hidden = right.hidden = true;
  stage.append(layer, handle, left, right);
  let family = [],
    shown = null, // the project on the stage
    known = "",
    mode = null, // null, "wipe" or "sides"
    against = null, // the version compared with
    at = 0.5;

  const label = (version, i) => version.label || (i === 0 ? "First version" : `Version ${i + 1}`);
  const labelOf = (version) => label(version, family.indexOf(version));
  const isListed = (job) => app.state.jobs.some((one) => one.id === job);

  // --- which versions there are
  async function look(job) {
    const key = job && job.project ? [job.project, job.state, job.done > 0, app.state.gallery].join("|") : "";
    if (key === known) return;
    known = key;
    shown = job && job.project;
    const answer = key ? await answerOf(versionsOf(job.id)) : { versions: [] };
    if (known !== key || !answer || !answer.versions) return;
    family = answer.versions;
    const mine = family.find((version) => version.name === shown);
    emit("branch", mine && mine.from !== null ? { second: mine.from } : null);
    if (!family.some((version) => version.name === against && version.name !== shown)) compare(null);
    draw();
  }

  // --- tabs
  function draw() {
    tabs.hidden = family.length < 2;
    if (tabs.hidden) {
      tabs.replaceChildren();
      return;
    }
    const one = (version, i) => {
      const from = version.from === null ? "" : ` · from ${version.from} s`,
        current = version.name === shown;
      return el("button", {
        type: "button",
        class: "wa-version",
        "aria-pressed": String(current),
        "data-version": version.name,
        title: "Show this version",
        text: (version.starred ? "★ " : "") + label(version, i) + from + (version.main ? " · goes on" : ""),
        onclick: () => current || emit("show", { job: isListed(version.job) ? version.job : version.name }),
      });
    };
    const rest = family.filter((version) => version.name !== shown && version.video_url);
    const choice = el(
      "select",
      { class: "mg-input wa-against", "aria-label": "Compare with", onchange: (event) => pick(event.target.value) },
      ...rest.map((version) => el("option", { value: version.name, text: labelOf(version) })),
    );
    keepInside(choice);
    if (against) choice.value = against;
    const toggle = (name, text, action) =>
      button(text, null, () => compare(mode === name ? null : name), {
        class: "mg-fill" + (mode === name ? " on" : ""),
        action,
        disabled: !rest.length,
      });
    const mine = family.find((version) => version.name === shown);
    const small = (text, name, run, extra) => button(text, name, run, { iconOnly: true, server: true, ...extra });
    const tools = mine
      ? [
          small("Name this version", "edit", () => rename(mine), { action: "name-version" }),
          small(
            mine.starred ? "Remove the star" : "Star this version",
            "star",
            () => change({ starred: !mine.starred }),
            {
              action: "star-version",
              class: mine.starred ? "wa-on" : "",
            },
          ),
          small("Make it the one that goes on", "check", () => change({ main: true }), {
            action: "main-version",
            class: mine.main ? "wa-on" : "",
            disabled: mine.main,
            title: mine.main
              ? "This version goes on: it stands for all in the gallery"
              : "Make it the one that goes on: it stands for all in the gallery, and new videos continue it",
          }),
        ]
      : [];
    refill(
      tabs,
      el("div", { class: "wa-list", role: "group", "aria-label": "Versions" }, ...family.map(one)),
      ...tools,
      el("span", { class: "mg-grow" }),
      toggle("wipe", "Wipe", "compare-wipe"),
      toggle("sides", "Side by side", "compare-sides"),
      ...(mode && rest.length > 1 ? [choice] : []),
    );
  }

  async function change(what) {
    const answer = await call(setLabel({ video: shown, ...what }));
    if (answer.error) return answer;
    known = "";
    emit("poll");
    return answer;
  }
  function rename(version) {
    const name = el("input", { type: "text", class: "mg-input", value: version.label, maxlength: "120" });
    const intro = "It is shown over the stage and in the gallery. Leave it empty for none.";
    askFor("Name this version", intro, [field("Name", name)], "Keep", () => change({ name: name.value }));
    name.select();
  }

  // --- comparing
  function pick(name) {
    against = name;
    compare(mode);
  }
  function compare(next) {
    const rest = family.filter((version) => version.name !== shown && version.video_url),
      mine = family.find((version) => version.name === shown),
      parent = mine && rest.find((version) => version.name === mine.parent),
      chosen = rest.find((version) => version.name === against) || parent || rest[0];
    mode = next && chosen ? next : null;
    against = mode ? chosen.name : null;
    layer.hidden = !mode;
    handle.hidden = mode !== "wipe";
    left.hidden = right.hidden = !mode;
    stage.classList.toggle("sides", mode === "sides");
    if (mode) {
      if (!other.src.endsWith(chosen.video_url)) other.src = chosen.video_url;
      left.textContent = mine ? labelOf(mine) : "";
      right.textContent = labelOf(chosen);
    } else other.removeAttribute("src");
    picture.split(mode === "sides" ? 2 : 1);
    place();
    follow();
    draw();
  }
  function place() {
    layer.style.clipPath = mode === "wipe" ? `inset(0 0 0 ${at * 100}%)` : "none";
    handle.style.left = at * 100 + "%";
    handle.setAttribute("aria-valuenow", String(Math.round(at * 100)));
  }
  function move(x) {
    const rect = stage.getBoundingClientRect();
    at = Math.min(1, Math.max(0, (x - rect.left) / rect.width));
    place();
  }
  let dragging = false;
  handle.addEventListener("pointerdown", (event) => {
    dragging = true;
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => dragging && move(event.clientX));
  for (const name of ["pointerup", "pointercancel"]) handle.addEventListener(name, () => (dragging = false));
  handle.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    at = Math.min(1, Math.max(0, at + by));
    place();
  });

  // --- in step
  function follow() {
    if (!mode || other.readyState < 1) return;
    other.style.width = video.style.width;
    other.style.height = video.style.height;
    other.classList.toggle("crisp", video.classList.contains("crisp"));
    other.playbackRate = video.playbackRate;
    const want = Math.min(video.currentTime, Math.max(0, other.duration - 0.02));
    if (Math.abs(other.currentTime - want) > (video.paused ? 0.005 : DRIFT)) other.currentTime = want;
    if (video.paused && !other.paused) other.pause();
    if (!video.paused && other.paused && video.currentTime < other.duration) other.play().catch(() => {});
  }
  for (const name of ["loadedmetadata", "loadeddata"]) other.addEventListener(name, follow);
  for (const name of ["play", "pause", "seeked", "ratechange"]) video.addEventListener(name, follow);
  provide({ compare: () => compare(mode ? null : "wipe") });
  on(element, "state", (state) => look(state.shown));
  return { follow };
}

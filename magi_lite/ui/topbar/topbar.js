// The bar on top, and the page's only poller: it asks the server for its state and publishes it to every panel.
const root = element.querySelector(".tb"), chips = root.querySelector(".tb-chips"), toasts = root.querySelector(".mg-toasts");
const { el } = magi;
document.documentElement.lang = "en";

// --- the queue's list and the shown job's preview come only when they are newer than what is known
let known = { id: null, preview: null, preview_version: 0 }, queueVersion = 0, jobs = [], failures = 0, first = true, timer = null;
async function poll() {
  clearTimeout(timer);
  const wanted = magi.attached || null;
  if (known.id !== wanted) known = { id: wanted, preview: null, preview_version: 0 };
  let state = null;
  try {
    state = await server.status({ job: wanted, version: queueVersion, preview: known.preview_version });
  } catch (_) { state = null; }
  if (!state || state.version === undefined) {
    failures += 1;
    if (failures === 2) { magi.offline = true; queueVersion = 0; drawChips(); }
  } else {
    if (magi.offline) { magi.offline = false; magi.toast("Connected again.", "info"); }
    failures = 0;
    take(state, wanted);
  }
  timer = setTimeout(poll, failures ? 1500 : document.hidden ? 3000 : magi.state && magi.state.running ? 450 : 1200);
}
function take(state, wanted) {
  if (state.jobs) { jobs = state.jobs; queueVersion = state.version; }
  const shown = state.shown;
  if (shown && shown.id === wanted) {
    if (shown.preview) { known.preview = shown.preview; known.preview_version = shown.preview_version; }
    if (shown.preview_version < known.preview_version) { known.preview = null; known.preview_version = shown.preview_version; }
    shown.preview = known.preview;
  }
  magi.state = { ...state, jobs, shown: shown && shown.id === wanted ? shown : null };
  if (first) {                                     // a page that opens shows what runs, what it showed before, or what was cut off
    first = false;
    const remembered = sessionStorage.getItem("magi-shown"), known = (id) => jobs.some((job) => job.id === id), cut = jobs.filter((job) => job.state === "interrupted").pop();
    if (!magi.attached) magi.attached = state.running || (known(remembered) && remembered) || (cut && cut.id) || null;
    if (magi.attached) setTimeout(poll, 0);
  }
  sessionStorage.setItem("magi-shown", magi.attached || "");
  magi.readyAt = magi.readyAt || performance.now();                // milliseconds from the visit to a page that lives
  drawChips();
  hear(magi.state.shown);
  magi.emit("state", magi.state);
}
magi.on(element, "poll", () => poll());

// --- words for a video that is being made: the run itself says from which second on it obeys them
let sent = null;
magi.on(element, "redirect", async ({ job, ...words }) => {
  const before = countOf(magi.state.shown), answer = await magi.call(server.redirect({ job, ...words }));
  if (!answer.error) sent = { job, before };
  poll();
});
const countOf = (shown) => (shown && shown.redirected ? shown.redirected.count : 0);
function hear(shown) {
  if (!sent || !shown || shown.id !== sent.job) return;
  if (countOf(shown) > sent.before) magi.toast(`The video obeys from second ${shown.redirected.second} on.`, "info");
  else if (shown.state === "running") return;
  else magi.toast("The video was done before the new words reached it; “Redo from …” makes a second version with them.", "info");
  sent = null;
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });

// --- chips
function chip(text, extra, dot) { return el("span", { class: "mg-pill tb-chip " + (extra || "") }, dot ? el("span", { class: "tb-dot " + dot }) : null, el("span", { text })); }
function drawChips() {
  const state = magi.state, list = [];
  if (magi.offline) list.push(chip("The app does not answer", "", "off"));
  else if (state) {
    const waiting = jobs.filter((job) => job.state === "waiting").length;
    list.push(state.running ? chip(`Making a video${waiting ? `, ${waiting} waiting` : ""}`, "running", "busy") : chip(waiting ? `${waiting} waiting${state.paused ? ", queue on hold" : ""}` : "Ready", "", waiting && state.paused ? "off" : "good"));
    const m = state.machine;
    if (m.vram_total) list.push(chip(`GPU ${magi.bytes(m.vram_used)} / ${magi.bytes(m.vram_total)}`, ""));
    list.push(chip(`RAM ${magi.bytes(m.ram_used)} / ${magi.bytes(m.ram_total)}`, "wide"));
    list.push(chip(`${state.model} · ${m.backend}`, "wide"));
  }
  const key = list.map((node) => node.textContent + node.className).join("|");
  if (chips.dataset.key !== key) { chips.dataset.key = key; chips.replaceChildren(...list); }
}

// --- toasts
magi.on(element, "toast", ({ message, level }) => {
  if ([...toasts.children].some((node) => node.dataset.message === message)) return;
  const node = el("div", { class: "mg-toast " + level, "data-message": message }, el("span", { text: message }),
    magi.button("Dismiss", "close", () => node.remove(), { iconOnly: true }));
  toasts.append(node);
  setTimeout(() => node.remove(), level === "error" ? 12000 : 5000);
});

// --- light and dark
const themeButton = root.querySelector(".tb-theme");
themeButton.append(magi.icon("theme"));
const setTheme = (dark) => document.body.classList.toggle("dark", dark);
const stored = localStorage.getItem("magi-theme");
if (stored && !new URLSearchParams(location.search).get("__theme")) setTheme(stored === "dark");
themeButton.addEventListener("click", () => { const dark = !document.body.classList.contains("dark"); setTheme(dark); localStorage.setItem("magi-theme", dark ? "dark" : "light"); });
poll();

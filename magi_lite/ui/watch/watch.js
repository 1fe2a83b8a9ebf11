// The stage: the video as it grows, the preview, the status line, the two bars, and what can be done with the video.
const root = element.querySelector(".wa"), q = (name) => root.querySelector(".wa-" + name);
const video = q("video"), preview = q("preview"), empty = q("empty"), controls = q("controls"), status = q("status"), notes = q("notes"), actionRow = q("actions");
const [wholeBar, partBar] = root.querySelectorAll(".mg-bar");
const { el } = magi, player = new Player(video);
let job = null, at = 0;

empty.append(el("b", { text: "Your video appears here" }), el("span", { text: "Write what you want to see and press Generate. The first second plays while the next ones are made." }));

// --- controls of the player
const clock = el("span", { class: "wa-clock" }), slider = el("input", { type: "range", min: "0", max: "1", step: "0.01", value: "0", "aria-label": "Position in the video" });
const playButton = magi.button("Play or pause", "pause", () => (video.paused ? video.play().catch(() => {}) : video.pause()), { iconOnly: true });
const fullButton = magi.button("Full screen", "fit", () => (document.fullscreenElement ? document.exitFullscreen() : q("stage").requestFullscreen()), { iconOnly: true });
controls.append(playButton, slider, clock, fullButton);
slider.addEventListener("input", (event) => { event.stopPropagation(); video.currentTime = Number(slider.value); });
slider.addEventListener("change", (event) => event.stopPropagation());
for (const name of ["play", "pause"]) video.addEventListener(name, () => playButton.replaceChildren(magi.icon(video.paused ? "play" : "pause")));
video.addEventListener("click", () => playButton.click());
const length = () => (player.growing ? player.end : isFinite(video.duration) ? video.duration : 0);
let ticking = false;
function tick() {
  ticking = false;
  if (!element.isConnected) return;
  if (!video.hidden && job) {
    const now = video.currentTime, total = length();
    if (Math.abs(now - at) > 0.02) {
      at = now; slider.max = String(total || 1); slider.value = String(now); slider.setAttribute("aria-valuetext", `${now.toFixed(1)} of ${total.toFixed(1)} seconds`);
      clock.textContent = `${now.toFixed(1)} / ${total.toFixed(1)} s`;
      magi.emit("time", { time: now, job: job.id });
    }
  }
  if (!video.paused && !video.hidden) follow();
}
function follow() { if (!ticking) { ticking = true; requestAnimationFrame(tick); } }   // a still page draws no frames
for (const name of ["play", "playing", "seeked", "loadedmetadata", "timeupdate"]) video.addEventListener(name, follow);
magi.on(element, "seek", ({ time }) => { if (job && !video.hidden) video.currentTime = Math.min(time, Math.max(0, length() - 0.05)); });

// --- state
const STATES = { waiting: "Waiting for its turn", running: "", paused: "Paused: everything is saved", finished: "Finished", stopped: "Stopped: the finished seconds are kept", failed: "This video failed", interrupted: "Interrupted: the app ended before this video did" };
function setBar(bar, fraction) {
  bar.firstElementChild.style.width = (fraction === null ? 100 : Math.min(100, fraction * 100)) + "%";
  fraction === null ? bar.removeAttribute("aria-valuenow") : bar.setAttribute("aria-valuenow", String(Math.round(fraction * 100)));
}
function statusParts() {
  const p = job.progress;
  if (job.state !== "running") {
    const made = job.done ? `${job.done} second${job.done === 1 ? "" : "s"} made` : null;
    return [STATES[job.state], made, job.state === "finished" && job.took ? `took ${magi.duration(job.took)}` : null];
  }
  if (!p) return [job.detail || job.phase, magi.duration(job.elapsed)];
  const total = p.chunks === null ? "" : ` of ${p.chunks}`;
  const speed = p.seconds_per_chunk ? `${(1 / p.seconds_per_chunk).toFixed(p.seconds_per_chunk > 10 ? 3 : 2)}× real time` : null;
  return [`Second ${Math.min(p.chunk + 1, p.chunks || Infinity)}${total}`, `step ${p.step} of ${p.steps}`, p.eta === null ? null : p.chunks === null ? `next second in ${magi.duration(p.eta)}` : `${magi.duration(p.eta)} left`, speed];
}
function draw(state) {
  job = state.shown;
  const running = job && job.state === "running";
  const url = job && job.video_url, hasVideo = Boolean(url && job.video_size && job.done > 0);
  if (job) player.show(`${job.id}:${job.started}`, hasVideo ? url : null, job.video_size, running); else player.close();
  video.hidden = !hasVideo; controls.hidden = !hasVideo;
  const previewing = Boolean(running && job.preview);
  preview.hidden = !previewing; preview.classList.toggle("alone", previewing && !hasVideo);
  if (previewing && preview.src !== job.preview) preview.src = job.preview;
  empty.hidden = hasVideo || previewing;
  if (job) { const text = statusParts().filter(Boolean); if (status.dataset.key !== text.join("|")) { status.dataset.key = text.join("|"); status.replaceChildren(...text.flatMap((t, i) => (i ? [el("span", { class: "sep", text: "·" }), t] : [t]))); } }
  else { status.textContent = ""; status.dataset.key = ""; }
  q("bars").hidden = !running;
  if (running) { const p = job.progress; setBar(wholeBar, p ? p.fraction : 0); setBar(partBar, p && p.steps ? p.step / p.steps : 0); }
  drawNotes(); drawActions();
}
function drawNotes() {
  const list = job ? [...job.notices.map((n) => [n.message, n.level]), ...(job.error && job.state !== "running" ? [[job.error, job.state === "failed" ? "error" : "warning"]] : [])] : [];
  const key = JSON.stringify(list);
  if (notes.dataset.key === key) return;
  notes.dataset.key = key;
  notes.replaceChildren(...list.map(([text, level]) => el("div", { class: "mg-note " + level, text })));
}
let actionKey = "";
function drawActions() {
  const key = job ? `${job.id}|${job.state}|${job.stopping}|${job.project}|${job.done > 0}` : "";
  if (key === actionKey) return;
  actionKey = key;
  const list = [], id = job && job.id, soft = { class: "mg-fill" };
  if (job && job.state === "running") {
    list.push(magi.button("Stop & keep", "stop", () => act(server.stop({ job: id }), "Stopping after this step; finished seconds are kept."), { ...soft, action: "stop", title: "End here and keep every finished second" }));
    list.push(magi.button("Pause", "pause", () => act(server.pause({ job: id }), "Pausing; the state is saved and the device is freed."), { ...soft, action: "pause", title: "Save the state and free the device; Resume goes on exactly" }));
    list.push(el("span", { class: "mg-grow" }), magi.button("Plan another", "add", () => { magi.attached = null; magi.emit("poll"); magi.toast("This video goes on; the Queue tab brings it back here. The timeline is free for the next one."); }, { action: "another", title: "Let this one go on and write the next one" }));
  }
  if (job && ["paused", "stopped", "interrupted", "failed"].includes(job.state)) list.push(magi.button("Resume", "play", () => act(server.resume({ job: id })), { class: "mg-primary", action: "resume" }));
  if (job && job.project && job.done > 0 && job.state !== "running" && job.state !== "waiting") {
    list.push(magi.button("Extend", "add", openExtend, { ...soft, action: "extend", title: "Make more seconds after the last one" }));
    list.push(magi.button("Redo from …", "branch", openRedo, { ...soft, action: "redo", title: "Make the video again from one second on; both versions are kept" }));
    list.push(el("a", { class: "mg-btn mg-fill", href: job.video_url + "?download", download: job.file_name, "data-action": "download" }, magi.icon("download"), el("span", { text: "Save" })));
  }
  if (job && job.state !== "running") list.push(el("span", { class: "mg-grow" }), magi.button("Clear", "close", () => { magi.attached = null; magi.emit("poll"); }, { action: "clear", title: "Empty the stage; the video stays in the gallery" }));
  actionRow.replaceChildren(...list);
}
async function act(promise, message) {
  const answer = await magi.call(promise);
  if (answer.error) return answer;
  if (message) magi.toast(message, "info");
  if (answer.job) magi.attached = answer.job;
  magi.emit("poll");
  return answer;
}

// --- dialogs
function dialog(title, intro, fields, ok, submit) {
  const box = el("dialog", { class: "mg-dialog", "aria-label": title });
  const form = el("form", { method: "dialog" }, el("h3", { text: title }), el("p", { class: "mg-muted", text: intro }), ...fields.filter(Boolean),
    el("div", { class: "mg-row" }, el("span", { class: "mg-grow" }), magi.button("Cancel", null, () => box.close()), el("button", { type: "submit", class: "mg-btn mg-primary", text: ok })));
  form.addEventListener("submit", async (event) => { event.preventDefault(); const answer = await submit(); if (!answer.error) box.close(); });
  form.addEventListener("change", (event) => event.stopPropagation()); form.addEventListener("input", (event) => event.stopPropagation());
  box.append(form); box.addEventListener("close", () => box.remove());
  document.querySelector(".gradio-container").append(box); box.showModal();
}
const field = (label, input) => el("label", { class: "mg-field" }, el("span", { text: label }), input);
function openExtend() {
  const id = job.id, seconds = el("input", { type: "number", class: "mg-input", min: "1", max: "600", step: "1", value: "2", required: true });
  dialog("Extend the video", "New seconds go on from the saved latents, so there is no jump. The last words hold unless the timeline says more.", [field("More seconds", seconds)], "Extend",
    () => act(server.extend({ video: id, seconds: Number(seconds.value) })));
}
function openRedo() {
  const id = job.id, last = job.done - 1, second = el("input", { type: "number", class: "mg-input", min: "0", max: String(last), step: "1", value: String(Math.min(last, Math.floor(at))), required: true });
  const words = el("textarea", { class: "mg-input", rows: "2", placeholder: "Leave empty to keep the words" }), seed = el("input", { type: "number", class: "mg-input", min: "0", step: "1", placeholder: "same" });
  const told = { ...magi.timeline, global_prompt: document.querySelector("#mg-prompt textarea").value.trim() };
  const edited = ["segments", "global_prompt"].some((part) => JSON.stringify(told[part]) !== JSON.stringify(job.timeline[part]));
  const follow = el("input", { type: "checkbox", checked: Boolean(edited) });
  dialog("Redo from a second", "Every earlier second stays bit for bit as it is. The old version is kept in the gallery.", [field(`From second (0 to ${last})`, second), field("New words from there on", words),
    edited ? el("label", { class: "mg-row mg-small", style: "margin-bottom:12px" }, follow, "Follow the prompt and the timeline as I changed them") : null, field("New seed", seed)], "Redo",
    () => act(server.redo({ video: id, second: Number(second.value), prompt: words.value.trim(), seed: seed.value === "" ? null : Number(seed.value), timeline: edited && follow.checked ? told : null })));
}
magi.on(element, "state", draw);
watch("value", () => {
  if (!props.value || !props.value.job) return;
  magi.attached = props.value.job; magi.emit("poll");
  if (window.innerWidth <= 760) root.scrollIntoView({ behavior: "smooth", block: "center" });   // there the stage stands below the form
});
if (magi.state) draw(magi.state);

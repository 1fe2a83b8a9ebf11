// The prompt of a video that is being made can be changed: its seconds that have not begun obey. This line says from
// which one on, and sends the words when asked to, so that a half-typed sentence is never obeyed.
const root = element.querySelector(".st"), line = root.querySelector(".st-text");
let job = null, key = "";
const box = () => document.querySelector("#mg-prompt textarea");
const words = () => (box() ? box().value.trim() : "");
const same = (a, b) => a.trim() === b.trim();
const tell = () => { if (!send.disabled && job) { magi.emit("redirect", { job: job.id, prompt: words() }); box().focus(); } };
const send = magi.button("Tell the video", "play", tell, { class: "mg-primary", action: "tell", title: "Let the seconds that have not begun obey this prompt (Ctrl + Enter)" });
root.append(send);

function draw() {
  const running = Boolean(job && job.state === "running"), now = running ? job.timeline.global_prompt : "";
  const late = running && job.seconds !== null && job.locked >= job.seconds, changed = running && !same(words(), now), empty = !words() && !(running && job.timeline.segments.length);
  const from = `seconds from ${running ? job.locked : 0} on`, taken = running && job.redirected ? `Obeyed from second ${job.redirected.second} on. ` : "";
  const text = late ? "Every second of this video has begun. New words are for its next version: Redo, or Generate."
    : changed ? `Not told yet: ${from} can still obey these words.` : `${taken}New words reach ${from}; write them above.`;
  const next = [running, late, changed, empty, text].join("|");
  if (next === key) return;
  key = next;
  root.hidden = !running;
  line.textContent = text;
  send.hidden = late || !changed; send.disabled = !changed || empty;
}
document.addEventListener("input", function listen(event) { if (!element.isConnected) document.removeEventListener("input", listen); else if (event.target === box()) draw(); });
document.addEventListener("keydown", function press(event) { if (!element.isConnected) document.removeEventListener("keydown", press); else if (event.target === box() && event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); draw(); tell(); } });
magi.on(element, "state", (state) => { job = state.shown; draw(); });
if (magi.state) { job = magi.state.shown; draw(); }

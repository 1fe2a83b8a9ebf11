// The growing video: byte ranges of one fragmented MP4 go into a MediaSource as the file grows, so that finished
// seconds play without a gap while the next ones are made. A finished file is played plainly.
class Player {
  constructor(video) { this.video = video; this.key = null; this.growing = false; this.reset();
    video.addEventListener("waiting", () => this.loop());
    video.addEventListener("ended", () => { video.currentTime = 0; video.play().catch(() => {}); });
  }
  reset() { this.source = null; this.buffer = null; this.queue = []; this.offset = 0; this.busy = false; this.size = 0; this.final = false; this.broken = false; }
  get end() { const b = this.video.buffered; return b.length ? b.end(b.length - 1) : 0; }
  // While it grows the video runs in a loop over what there is.
  loop() { if (this.growing && this.end > 0.5 && this.video.currentTime > this.end - 0.25) { this.video.currentTime = 0; this.video.play().catch(() => {}); } }
  close() { this.key = null; this.growing = false; this.reset(); this.video.removeAttribute("src"); this.video.load(); }
  plain(url, size) {
    const time = this.video.currentTime || 0, playing = !this.video.paused || !this.video.currentSrc;
    this.reset(); this.growing = false; this.size = size;
    this.video.src = `${url}${url.includes("?") ? "&" : "?"}v=${size}`;
    this.video.addEventListener("loadedmetadata", () => { if (time < this.video.duration) this.video.currentTime = time; if (playing) this.video.play().catch(() => {}); }, { once: true });
  }
  show(key, url, size, growing) {
    if (!url || !size) { if (this.key && this.key !== key) this.close(); return; }
    const fresh = this.key !== key;
    this.key = key;
    if (!growing || !("MediaSource" in window) || this.broken) {
      if (fresh || this.growing || (this.broken && size !== this.size) || (!growing && size !== this.size)) { const broken = this.broken && growing; this.plain(url, size); this.broken = broken; }
      return;
    }
    if (fresh || !this.growing || size < this.offset) { this.reset(); this.growing = true; this.open(url); }
    this.size = size; this.url = url;
    this.fetch();
  }
  open(url) {
    const source = new MediaSource();
    this.source = source; this.url = url;
    this.video.src = URL.createObjectURL(source);
    source.addEventListener("sourceopen", () => { URL.revokeObjectURL(this.video.src); this.fetch(); }, { once: true });
  }
  async fetch() {
    const source = this.source;
    if (this.busy || !source || source.readyState !== "open") return;
    this.busy = true;
    try {
      while (source === this.source && this.offset < this.size) {
        const end = this.size - 1;
        const response = await fetch(this.url, { headers: { Range: `bytes=${this.offset}-${end}` }, cache: "no-store" });
        if (!response.ok) break;
        let bytes = new Uint8Array(await response.arrayBuffer());
        if (response.status === 200) bytes = bytes.slice(this.offset, end + 1);
        if (!bytes.byteLength || source !== this.source) break;
        this.offset += bytes.byteLength;
        this.queue.push(bytes);
        this.pump();
      }
    } catch (_) { /* the next state asks again */ } finally { if (source === this.source) this.busy = false; }
  }
  pump() {
    if (!this.buffer) {
      const mime = Player.mime(this.queue[0]);
      if (!mime) { if (this.queue.length > 1) this.queue = [Player.join(this.queue)]; return; }
      if (!MediaSource.isTypeSupported(mime)) { this.broken = true; this.plain(this.url, this.size); this.broken = true; return; }
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.pump());
      this.buffer.addEventListener("error", () => { this.broken = true; });
    }
    if (this.buffer.updating) return;
    if (this.queue.length && this.source.readyState === "open") { this.buffer.appendBuffer(this.queue.shift()); return; }
    if (this.video.paused && this.video.currentTime === 0 && this.end > 0) this.video.play().catch(() => {});
    this.loop();
  }
  static join(parts) { const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0)); let at = 0; for (const p of parts) { all.set(p, at); at += p.length; } return all; }
  // The codec string stands in the file's own avcC box: profile, constraints, level.
  static mime(bytes) {
    for (let i = 0; bytes && i + 8 < bytes.length; i += 1)
      if (bytes[i] === 0x61 && bytes[i + 1] === 0x76 && bytes[i + 2] === 0x63 && bytes[i + 3] === 0x43)
        return `video/mp4; codecs="avc1.${[...bytes.slice(i + 5, i + 8)].map((b) => b.toString(16).padStart(2, "0")).join("")}"`;
    return null;
  }
}

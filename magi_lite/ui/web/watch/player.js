// The growing video: byte ranges of one fragmented MP4 go into a MediaSource as the file grows, so that finished
// seconds play without a gap while the next ones are made. A finished file is played plainly.
const NEAR_END = 0.25; // seconds

export class Player {
  constructor(video) {
    this.video = video;
    this.key = null;
    this.growing = false;
    this.looping = true;
    this.wanted = true; // to play: what was asked for counts also while one source gives way to another
    this.reset();
    video.addEventListener("pause", () => {
      if (video.paused && !video.ended) this.wanted = false; // by the browser, or by keys of the system
    });
    video.addEventListener("waiting", () => this.loop());
    video.addEventListener("ended", () => {
      if (this.looping) this.again();
      else this.wanted = false;
    });
  }

  reset() {
    Object.assign(this, { source: null, buffer: null, queue: [], offset: 0, busy: false, size: 0, broken: false });
  }

  get end() {
    const b = this.video.buffered;
    return b.length ? b.end(b.length - 1) : 0;
  }

  /** Seconds that can be played. */
  get length() {
    return this.growing ? this.end : isFinite(this.video.duration) ? this.video.duration : 0;
  }

  again() {
    this.video.currentTime = 0;
    this.play();
  }

  /** Whether it plays, or will as soon as its source is there. */
  get playing() {
    return this.key !== null && !this.length ? this.wanted : !this.video.paused;
  }

  play() {
    this.wanted = true;
    this.video.play().catch(() => {}); // a browser may refuse to play by itself
  }

  pause() {
    this.wanted = false;
    this.video.pause();
  }

  /** While it grows the video runs in a loop over what there is. */
  loop() {
    const atEnd = this.end > 0.5 && this.video.currentTime > this.end - NEAR_END;
    if (this.growing && this.looping && atEnd) this.again();
  }

  close() {
    this.video.removeAttribute("poster");
    this.key = null;
    this.growing = false;
    this.wanted = true;
    this.reset();
    this.video.removeAttribute("src");
    this.video.load();
  }

  /** Let the frame that is shown stand until the first one of another source is there. */
  freeze() {
    const { videoWidth: width, videoHeight: height, readyState } = this.video;
    if (readyState < 2) return;
    const frame = Object.assign(document.createElement("canvas"), { width, height });
    frame.getContext("2d").drawImage(this.video, 0, 0);
    this.video.poster = frame.toDataURL("image/jpeg");
    this.video.addEventListener("loadeddata", () => this.video.removeAttribute("poster"), { once: true });
  }

  plain(url, size) {
    const time = this.video.currentTime || 0;
    this.reset();
    this.growing = false;
    this.size = size;
    this.video.src = `${url}${url.includes("?") ? "&" : "?"}v=${size}`;
    const source = this.video.src;
    const goOn = () => {
      if (this.video.src !== source) return; // it never came
      if (time < this.video.duration) this.video.currentTime = time;
      if (this.wanted) this.play();
    };
    this.video.addEventListener("loadedmetadata", goOn, { once: true });
  }

  /** Show `size` bytes of the file at `url`; `key` names the run, so that another one starts anew. */
  show(key, url, size, growing) {
    if (!url || !size) {
      if (this.key && this.key !== key) this.close();
      return;
    }
    const fresh = this.key !== key;
    this.key = key;
    if (!growing || !("MediaSource" in window) || this.broken) {
      const changed = (this.broken || !growing) && size !== this.size;
      if (fresh || this.growing || changed) {
        const broken = this.broken && growing;
        if (!fresh && this.growing) this.freeze();
        this.plain(url, size);
        this.broken = broken;
      }
      return;
    }
    if (fresh || !this.growing || size < this.offset) {
      this.reset();
      this.growing = true;
      if (fresh) this.wanted = true; // one that was just started is shown
      this.open(url);
    }
    this.size = size;
    this.url = url;
    this.fetch();
  }

  open(url) {
    const source = new MediaSource();
    this.source = source;
    this.url = url;
    this.video.src = URL.createObjectURL(source);
    const opened = () => {
      URL.revokeObjectURL(this.video.src);
      this.fetch();
    };
    source.addEventListener("sourceopen", opened, { once: true });
  }

  async fetch() {
    const source = this.source;
    if (this.busy || !source || source.readyState !== "open") return;
    this.busy = true;
    try {
      while (source === this.source && this.offset < this.size) {
        const end = this.size - 1;
        const headers = { Range: `bytes=${this.offset}-${end}` };
        const response = await fetch(this.url, { headers, cache: "no-store" });
        if (!response.ok) break;
        let bytes = new Uint8Array(await response.arrayBuffer());
        if (response.status === 200) bytes = bytes.slice(this.offset, end + 1);
        if (!bytes.byteLength || source !== this.source) break;
        this.offset += bytes.byteLength;
        this.queue.push(bytes);
        this.pump();
      }
    } catch {
      // the next state asks again
    } finally {
      if (source === this.source) this.busy = false;
    }
  }

  pump() {
    if (!this.buffer) {
      const mime = Player.mime(this.queue[0]);
      if (!mime) {
        if (this.queue.length > 1) this.queue = [Player.join(this.queue)];
        return;
      }
      if (!MediaSource.isTypeSupported(mime)) {
        this.plain(this.url, this.size);
        this.broken = true;
        return;
      }
      this.buffer = this.source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.pump());
      this.buffer.addEventListener("error", () => {
        this.broken = true;
      });
    }
    if (this.buffer.updating) return;
    if (this.queue.length && this.source.readyState === "open") {
      this.buffer.appendBuffer(this.queue.shift());
      return;
    }
    if (this.wanted && this.video.paused && this.video.currentTime === 0 && this.end > 0) this.play();
    this.loop();
  }

  static join(parts) {
    const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
    let at = 0;
    for (const p of parts) {
      all.set(p, at);
      at += p.length;
    }
    return all;
  }

  /** The codec string stands in the file's own avcC box: profile, constraints, level. */
  static mime(bytes) {
    const name = [0x61, 0x76, 0x63, 0x43]; // "avcC"
    for (let i = 0; bytes && i + 8 < bytes.length; i += 1)
      if (name.every((one, k) => bytes[i + k] === one)) {
        const codec = [...bytes.slice(i + 5, i + 8)].map((b) => b.toString(16).padStart(2, "0")).join("");
        return `video/mp4; codecs="avc1.${codec}"`;
      }
    return null;
  }
}

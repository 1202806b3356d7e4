/**
 * A client of FLX API's live events for browsers and Node 20 or newer, without dependencies. Copy it and change it.
 *
 *     import { EventStream } from "./flx-client.mjs";
 *     const events = new EventStream("https://flx.example.com", ["execution_events"], { token: newToken, onGap: console.warn });
 *     for await (const event of events) console.log(event.event, event.data);
 *
 * Strategy: as flx_api.client in Python, which has the same parts and names. `Progress` decides what to ask for, what was
 * heard already and what is missing; `EventStream` connects, and comes again from the last position after a pause with
 * jitter. Connections are WebSockets; where these do not get through, event streams over HTTP (`StreamSocket`, which looks
 * like a WebSocket from outside). The protocol is described in docs/protocol.md.
 *
 * Rules:
 * - A browser cannot set headers on a WebSocket, so the token goes as a subprotocol.
 * - A browser is not told why a handshake was refused, so that is asked for over HTTP.
 * - A WebSocket here cannot be read more slowly than it is sent to: beyond a bound of messages the connection is given up,
 *   and made again from the last position when they have been handed out.
 * - The browser's own `EventSource` is not used: it can send no token, and comes again by itself.
 *
 * Node before 22 has its WebSocket behind a flag: node --experimental-websocket.
 */

const REMEMBERED = 10_000;
const NO_CHAIN = -1;
const EPHEMERAL = "~"; // no topic begins with it
const MAX_WAITING = 10_000;
// The service takes 50 messages a second of a connection.
const BURST = 40;
const APART_MS = 25;
// It says something at least every 25 s.
const SILENCE_MS = 60_000;
const MARGIN_MS = 30_000;
const OPEN_TIMEOUT_MS = 10_000;
// Browsers give the code 1005 to a Close frame without one, and 1006 to a connection that ended without.
const RESUME = new Set([1001, 1005, 1006, 1011, 1012, 4408, 4429]);
const TOKEN_ENDED = 4401;
// For the answer to a token that was offered.
const REFRESH_MS = 10_000;
// A code of our own for connections that we give up; never sent by the service.
const GIVEN_UP = 4000;
// Statuses that say "not now": of the service, or of a proxy before it.
const NOT_NOW = new Set([408, 425, 429, 500, 502, 503, 504]);
const MAX_ASKED_MS = 60_000;
const ONE_POSITION = "start: an event stream begins all its topics at one position";

/** The stream is over, or a topic was refused: `code` is an error code of the service, a close code, or our own word. */
export class RealtimeError extends Error {
  constructor(code, message, topic = null) {
    super(message);
    this.name = "RealtimeError";
    this.code = code;
    this.topic = topic;
  }
}

/** Pauses: anything between nothing and a bound that doubles with each failure. */
export class Backoff {
  constructor(firstMs = 500, longestMs = 30_000, chance = Math.random) {
    Object.assign(this, { firstMs, longestMs, chance, failures: 0 });
  }

  pauseMs(askedMs = 0) {
    const bound = Math.min(this.longestMs, this.firstMs * 2 ** this.failures);
    this.failures += 1;
    return askedMs + this.chance() * bound;
  }

  reset() {
    this.failures = 0;
  }
}

/**
 * How far a client has come. A position is one for all topics, and topics catch up one after the other: only the answer to
 * the ping behind the last subscription says that all are level, and until then a connection begins where the one before
 * did. What then comes twice is dropped by topic and sequence number; where `prev` is not what was heard, events are missing.
 */
export class Progress {
  constructor(topics, start = null) {
    this.topics = new Set(topics);
    this.positions = {};
    for (const topic of this.topics) {
      const from = typeof start === "string" ? start : start?.[topic];
      if (from !== undefined && from !== null) this.positions[topic] = from;
    }
    this.asked = [];
    this.answered = null;
    this.pings = 0;
    this.level = false;
    this.together = false;
    this.heard = new Map();
    this.chain = 0;
    this.told = new Map(); // by topic: up to where its last gap says that something may be missing
  }

  /** From where all topics go on together. Throws where they begin at different positions. */
  get position() {
    const found = new Set([...this.topics].map((topic) => this.positions[topic]));
    if (found.size > 1) throw new RangeError(ONE_POSITION);
    return found.values().next().value;
  }

  /** A new connection brings all topics together, and every position on it covers all. */
  beginTogether() {
    this.asked = [];
    this.answered = null;
    this.pings = 0;
    this.level = this.together = true;
    return [];
  }

  /** What to send on a new connection. */
  begin() {
    this.asked = [];
    this.answered = null;
    this.pings = 0;
    this.together = false;
    this.level = this.topics.size === 1;
    return this.#request([...this.topics].map((topic) => subscription(topic, this.positions[topic])));
  }

  subscribe(topic, from) {
    this.topics.add(topic);
    if (from !== undefined) this.positions = { ...this.positions, [topic]: from };
    this.level = false;
    return this.#request([subscription(topic, from)]);
  }

  unsubscribe(topic) {
    this.#forget(topic);
    this.chain += 1;
    const message = { type: "unsubscribe", event: topic };
    this.asked.push(message);
    return [message];
  }

  #request(messages) {
    const made = [...messages, { type: "ping" }];
    this.pings += 1;
    this.asked.push(...made);
    return made;
  }

  #forget(topic) {
    this.topics.delete(topic);
    const { [topic]: _, ...others } = this.positions;
    this.positions = others;
  }

  /** What a message means for the reader: an array of `{event}` and `{gap}`. */
  take(message) {
    switch (message.type) {
      case "event":
      case "presence":
        return this.#takeEvent(message);
      case "error":
        if (message.of) return []; // no answer to what is asked for here
        return message.code === "gap" ? this.#takeGap(message) : this.#takeRefusal(message);
      case "subscribed":
        if (this.together) {
          this.#reach(message.pos);
          return [];
        }
        this.asked.shift();
        this.answered = message.pos;
        if (this.topics.has(message.event) && !(message.event in this.positions)) {
          this.positions = { ...this.positions, [message.event]: message.pos };
        }
        return [];
      case "unsubscribed":
        if (!message.reason) this.asked.shift();
        else if (this.topics.has(message.event)) {
          this.#forget(message.event);
          throw new RealtimeError(message.reason, `${message.event}: the token does not permit to hear this`, message.event);
        }
        return [];
      case "pong":
        this.asked.shift();
        this.pings -= 1;
        if (this.pings === 0 && !this.level) {
          this.level = true;
          this.#reach(this.answered);
        }
        return [];
      default:
        return []; // a later version may send what this one does not know
    }
  }

  #takeRefusal(error) {
    const topic = this.asked.shift()?.event ?? null;
    if (topic !== null) this.#forget(topic);
    throw new RealtimeError(error.code, topic === null ? error.message : `${topic}: ${error.message}`, topic);
  }

  #takeGap(gap) {
    const { reason = "gap", event: topic = null, after = null, before = null } = gap;
    if (topic === null || topic.endsWith("*")) this.chain += 1;
    else {
      if (before !== null) {
        this.told.delete(topic);
        this.told.set(topic, { epoch: gap.epoch, before });
        bound(this.told);
      }
      for (const its of [topic, EPHEMERAL + topic]) {
        const heard = this.heard.get(its);
        if (heard) heard.chain = NO_CHAIN; // what was heard stays known
      }
    }
    if (this.level) this.#reach(gap.pos);
    return [{ gap: { reason, topic, after, before } }];
  }

  #takeEvent(event) {
    const found = [];
    // Ephemeral events have numbers of their own beside those of the journal.
    const its = event.ephemeral ? EPHEMERAL + event.event : event.event;
    const heard = this.heard.get(its);
    if (heard !== undefined) {
      if (event.epoch === heard.epoch && event.seq <= heard.seq) return [];
      if (heard.chain === this.chain && event.epoch !== heard.epoch) {
        found.push({ gap: { reason: "epoch", topic: event.event, after: null, before: null } });
      } else if (heard.chain === this.chain && event.prev !== heard.seq && !this.#isTold(event)) {
        found.push({ gap: { reason: "missing", topic: event.event, after: heard.seq, before: event.seq } });
      }
    }
    this.heard.delete(its);
    this.heard.set(its, { epoch: event.epoch, seq: event.seq, chain: this.chain });
    bound(this.heard);
    if (this.level) this.#reach(event.pos);
    found.push({ event });
    return found;
  }

  /** Whether what is missing before an event is all in a gap that was told: some events of it may still come. */
  #isTold(event) {
    const told = this.told.get(event.event);
    return told !== undefined && told.epoch === event.epoch && event.prev < told.before;
  }

  #reach(position) {
    if (position) this.positions = Object.fromEntries([...this.topics].map((topic) => [topic, position]));
  }
}

/** Reads an event stream (WHATWG HTML, section 9.2): pieces of text in, `{kind, data}` out. */
export class EventStreamDecoder {
  #rest = "";
  #kind = "";
  #data = [];

  feed(text) {
    const whole = this.#rest + text;
    const lines = whole.split(/\r\n|\n|\r/);
    this.#rest = lines.pop();
    if (whole.endsWith("\r")) this.#rest = `${lines.pop()}\r`; // it may be half of a CR LF
    const found = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) found.push({ kind: this.#kind || "message", data: this.#data.join("\n") });
        this.#kind = "";
        this.#data = [];
        continue;
      }
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") this.#kind = value;
      else if (field === "data") this.#data.push(value);
    }
    return found;
  }
}

const IN_STREAMS = new Set(["event", "presence", "subscribed", "unsubscribed", "heartbeat", "expiring", "reconnect"]);

/** `GET /v1/events` as something that looks like a WebSocket, and can only be listened to. */
class StreamSocket {
  isStream = true;
  #abort = new AbortController();

  constructor(url, headers) {
    this.#read(url, headers);
  }

  close() {
    this.#abort.abort();
  }

  async #read(url, headers) {
    try {
      const answer = await fetch(url, { headers, cache: "no-store", signal: this.#abort.signal });
      if (answer.status !== 200 || !answer.headers.get("content-type")?.startsWith("text/event-stream")) {
        const { code, detail } = await answer.json().catch(() => ({}));
        const after = Number(answer.headers.get("retry-after"));
        return this.onrefused?.({ status: answer.status, code, detail, afterMs: after > 0 ? after * 1000 : 0 });
      }
      this.onopen?.();
      const [decoder, bytes] = [new EventStreamDecoder(), new TextDecoder()];
      for (const reader = answer.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        this.onalive?.();
        for (const { kind, data } of decoder.feed(bytes.decode(value, { stream: true }))) this.#tell(kind, data);
      }
    } catch {
      // unreachable, lost, or closed by us
    }
    this.onclose?.({ code: 1006, reason: "" });
  }

  #tell(kind, data) {
    if (kind === "closed") this.onclose?.(JSON.parse(data));
    else if (kind === "gap") {
      const { t, ...gap } = JSON.parse(data);
      const message = { ...gap, type: "error", code: "gap", message: "", ...(t === "*" ? {} : { event: t }) };
      this.onmessage?.({ data: JSON.stringify(message) });
    } else if (IN_STREAMS.has(kind)) this.onmessage?.({ data });
  }
}

/** Forgets the topic that was quiet for the longest time, where there are too many. */
function bound(byTopic) {
  if (byTopic.size > REMEMBERED) byTopic.delete(byTopic.keys().next().value);
}

/** Events of topics, each once and in order; gaps are told. */
export class EventStream {
  #base;
  #url;
  #options;
  #progress;
  #socket = null;
  #texts = [];
  #outbox = [];
  #free = 0;
  #end = null;
  #wake = null;
  #due = [];
  #before;
  #expiry = null;
  #timers = new Set();
  #closed = false;
  #asking = null;
  #refused = false;
  #refreshing = false;
  #renewal = null;
  #transport;
  #nextToken = null;

  /**
   * @param {string} url the service's base URL: http, https, ws or wss
   * @param {string[]} topics exact names, `*`, or a beginning and `.*`
   * @param {object} [options]
   * @param {string | (() => string | Promise<string>)} [options.token] an access token, or a function that gives one; it is
   *   asked at every connection, and before the token it gave last ends
   * @param {string | Record<string, string>} [options.start] `positions` of an earlier stream, or one for all topics
   * @param {(gap: {reason: string, topic: string?, after: number?, before: number?}) => any} [options.onGap] told of each
   *   gap; without it a gap is thrown
   * @param {string} [options.clientId] the connection's name
   * @param {number} [options.attempts] after so many failures in a row it gives up; by default never
   * @param {Backoff} [options.backoff] the pauses between attempts
   * @param {typeof WebSocket} [options.WebSocket] another implementation than the global one
   * @param {"auto" | "websocket" | "sse"} [options.transport] `auto`: a WebSocket, and an event stream where that does not
   *   get through to the service, or there is none here; or one of them alone. An event stream begins all topics at one
   *   position, and is made again for a topic more
   */
  constructor(url, topics, options = {}) {
    const parts = /^(?:http|ws)(s?):\/\/(.*?)\/*$/.exec(url);
    if (!parts) throw new TypeError("url: begins with http://, https://, ws:// or wss://");
    const clientId = options.clientId ?? `js-${Math.random().toString(36).slice(2, 14)}`;
    this.#base = `http${parts[1]}://${parts[2]}`;
    this.#url = `ws${parts[1]}://${parts[2]}/ws/${clientId}`;
    const usual = { attempts: Infinity, backoff: new Backoff(), WebSocket: globalThis.WebSocket, transport: "auto" };
    this.#options = { ...usual, ...options };
    this.#transport = this.#options.transport;
    if (!["auto", "websocket", "sse"].includes(this.#transport)) throw new TypeError("transport: auto, websocket or sse");
    if (!this.#options.WebSocket && this.#transport === "websocket") {
      throw new TypeError("no WebSocket here: Node before 22 needs --experimental-websocket");
    }
    if (!this.#options.WebSocket) this.#transport = "sse";
    this.#progress = new Progress(topics, options.start);
    if (this.#transport === "sse") this.#progress.position; // it throws where there is none
    this.#before = this.#progress.positions;
  }

  /** From where each topic goes on behind the last event that was handed out: `start` of a later stream. */
  get positions() {
    return { ...(this.#due.length ? this.#before : this.#progress.positions) };
  }

  /** Hear another topic, from now or from a position on. An event stream goes on with all from where it is. */
  subscribe(topic, from) {
    if (this.#transport === "sse") {
      const { position } = this.#progress;
      if (from !== undefined && from !== position) throw new RangeError(ONE_POSITION);
      from = position;
    }
    this.#post(this.#progress.subscribe(topic, from));
  }

  unsubscribe(topic) {
    this.#post(this.#progress.unsubscribe(topic));
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (let event = await this.receive(); event !== null; event = await this.receive()) yield event;
    } finally {
      this.close();
    }
  }

  /** The next event; null after `close`. Throws a RealtimeError when the stream is over, or for a gap without `onGap`. */
  async receive() {
    for (;;) {
      while (this.#due.length) {
        const { event, gap } = this.#due.shift();
        if (event) return event;
        if (!this.#options.onGap) throw new RealtimeError("gap", `events were skipped (${gap.reason})`, gap.topic);
        await this.#options.onGap(gap);
      }
      if (this.#closed) return null;
      if (this.#texts.length) await this.#take(this.#texts.shift());
      else if (this.#end) await this.#takeEnd();
      else if (!this.#socket) await this.#connect();
      else await new Promise((wake) => (this.#wake = wake));
    }
  }

  /** End the stream. */
  close() {
    this.#closed = true;
    this.#asking?.abort();
    this.#drop();
    this.#rouse();
  }

  async #take(text) {
    const message = JSON.parse(text);
    if (message.type === "pong" || (message.type === "subscribed" && this.#socket?.isStream)) this.#options.backoff.reset();
    else if (message.type === "expiring") await this.#offerToken();
    else if (message.type === "refreshed") this.#refreshing = false;
    else if (message.type === "error" && message.of === "refresh") this.#giveUp(GIVEN_UP); // to come again with another one
    this.#before = this.#progress.positions;
    this.#due.push(...this.#progress.take(message));
  }

  async #takeEnd() {
    const { code, reason } = this.#end;
    this.#end = null;
    this.#drop();
    if (code === GIVEN_UP) return; // by us: to come again at once
    if (code === TOKEN_ENDED) {
      if (typeof this.#options.token !== "function") throw new RealtimeError("token_ended", "the token has ended");
    } else if (RESUME.has(code)) {
      await this.#pause(`the connection was lost (${code})`);
    } else {
      throw new RealtimeError(code, `the service closed the connection (${code}${reason ? `: ${reason}` : ""})`);
    }
  }

  async #connect() {
    const token = this.#nextToken ?? (await this.#newToken());
    if (this.#nextToken !== null) this.#expiry = null; // it is new, though it was asked for before
    this.#nextToken = null;
    await this.#open(token, this.#transport === "sse" ? this.#stream(token) : this.#webSocket(token));
  }

  #webSocket(token) {
    return new this.#options.WebSocket(this.#url, token ? ["flx.plain", `bearer.${token}`] : ["flx.plain"]);
  }

  #stream(token) {
    const { topics, position } = this.#progress;
    if (!topics.size) throw new RangeError("topics: an event stream has at least one");
    const headers = { Accept: "text/event-stream" };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (position !== undefined) headers["Last-Event-ID"] = position;
    return new StreamSocket(`${this.#base}/v1/events?topics=${encodeURIComponent([...topics].join(","))}`, headers);
  }

  /** Go on with a connection when it is open; otherwise find out why it is not. */
  async #open(token, socket) {
    let refusal = null;
    const current = () => this.#socket === socket;
    let silence = null;
    const alive = () => {
      this.#cancel(silence);
      silence = this.#later(SILENCE_MS, () => current() && this.#giveUp(1006));
    };
    // All of them before it opens: what opens may end in the same moment.
    const opened = await new Promise((settle) => {
      const timer = setTimeout(() => settle(false), OPEN_TIMEOUT_MS);
      socket.onopen = () => {
        clearTimeout(timer);
        if (!this.#closed) this.#socket = socket;
        settle(true);
      };
      socket.onmessage = ({ data }) => {
        if (!current()) return;
        alive();
        this.#texts.push(data);
        if (this.#texts.length > MAX_WAITING) this.#giveUp(GIVEN_UP);
        this.#rouse();
      };
      const ended = (code, reason) => {
        clearTimeout(timer);
        settle(false);
        if (!current()) return;
        this.#end ??= { code, reason };
        this.#rouse();
      };
      socket.onalive = () => current() && alive();
      socket.onrefused = (why) => ((refusal = why), ended(1006, ""));
      socket.onclose = ({ code, reason }) => ended(code, reason);
      // Node 20 tells of some connections that break by this alone.
      socket.onerror = () => ended(1006, "");
    });
    if (!current()) {
      silenced(socket).close();
      if (opened || this.#closed) return;
      if (socket.isStream) await this.#takeRefusal(refusal);
      else await this.#askWhy(token);
      return;
    }
    this.#refused = false;
    this.#transport = socket.isStream ? "sse" : "websocket";
    alive();
    this.#renewLater(token, current);
    this.#outbox = [];
    this.#free = 0;
    if (socket.isStream) this.#progress.beginTogether();
    else this.#post(this.#progress.begin());
  }

  /** An event stream was answered with a status, or not at all. */
  async #takeRefusal(refusal) {
    if (refusal === null || NOT_NOW.has(refusal.status)) {
      return this.#pause(`${this.#base} cannot be reached`, Math.min(refusal?.afterMs ?? 0, MAX_ASKED_MS));
    }
    const { status, code = status, detail = `the service answered ${status}` } = refusal;
    if (status !== 401 || typeof this.#options.token !== "function" || this.#refused) throw new RealtimeError(code, detail);
    this.#refused = true; // it may have ended on its way; a second refusal is meant
  }

  /** Leave a connection whose end nobody else tells; what came before is still handed out. */
  #giveUp(code) {
    const socket = this.#socket;
    silenced(socket).close(GIVEN_UP);
    this.#end = { code, reason: "" };
    this.#rouse();
  }

  #drop() {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      silenced(socket).close();
    }
  }

  /** After a handshake that failed: what HTTP says about this token decides whether to try again. */
  async #askWhy(token) {
    let status = 0;
    let problem = {};
    const asking = (this.#asking = new AbortController());
    const timer = setTimeout(() => asking.abort(), OPEN_TIMEOUT_MS);
    try {
      const headers = token ? { Authorization: `Bearer ${token}` } : {};
      const answer = await fetch(`${this.#base}/v1/auth/whoami`, { headers, signal: asking.signal });
      status = answer.status;
      problem = status === 401 ? await answer.json() : {};
    } catch {
      // unreachable, too late, or another origin: no more is known
    } finally {
      clearTimeout(timer);
      this.#asking = null;
    }
    if (this.#closed) return;
    if (status === 401) {
      if (typeof this.#options.token !== "function" || this.#refused) {
        throw new RealtimeError(problem.code ?? "invalid_token", problem.detail ?? "the token is refused");
      }
      this.#refused = true; // it may have ended on its way; a second refusal is meant
      return;
    }
    // The service is there and takes the token, but no WebSocket gets through to it.
    if (status === 200 && this.#transport === "auto" && this.#canStream()) return this.#open(token, this.#stream(token));
    await this.#pause(`${this.#url} cannot be opened`);
  }

  #canStream() {
    try {
      this.#progress.position;
      return this.#progress.topics.size > 0;
    } catch {
      return false;
    }
  }

  async #pause(why, askedMs = 0) {
    const { backoff, attempts } = this.#options;
    if (backoff.failures >= attempts) throw new RealtimeError("unreachable", why);
    const ms = backoff.pauseMs(askedMs);
    await new Promise((wake) => ((this.#wake = wake), this.#later(ms, () => this.#rouse())));
  }

  async #newToken() {
    const { token } = this.#options;
    return typeof token === "function" ? await token() : (token ?? null);
  }

  /** Offer a new token before this one ends; whether it is another one than before: the same is used to its end. */
  #renewLater(token, current) {
    this.#refreshing = false;
    if (typeof this.#options.token !== "function") return false;
    const expiry = expiryOf(token);
    const known = this.#expiry;
    this.#expiry = expiry;
    if (expiry === null || expiry === known) return false;
    const left = Math.max(expiry * 1000 - Date.now(), 0);
    // Longer than setTimeout can count is looked at again then.
    const due = Math.min(left - Math.min(MARGIN_MS, left / 4), 2 ** 31 - 1);
    this.#cancel(this.#renewal);
    this.#renewal = this.#later(due, () => current() && this.#offerToken());
    return true;
  }

  /** Ask for a new token and offer it on this connection; where nobody answers, the connection is made again. */
  async #offerToken() {
    const socket = this.#socket;
    const current = () => this.#socket === socket;
    if (!socket || this.#refreshing || typeof this.#options.token !== "function") return;
    this.#refreshing = true;
    let token = null;
    try {
      token = await this.#newToken();
    } catch {
      // The next connection asks again, and says why.
    }
    if (!current()) return;
    if (token === null) return this.#giveUp(GIVEN_UP);
    if (!this.#renewLater(token, current)) return void (this.#refreshing = false);
    if (socket.isStream) {
      this.#nextToken = token;
      return this.#giveUp(GIVEN_UP);
    }
    this.#refreshing = true;
    this.#later(REFRESH_MS, () => current() && this.#refreshing && this.#giveUp(GIVEN_UP));
    this.#post([{ type: "refresh", token }]);
  }

  #post(messages) {
    if (!this.#socket) return; // `begin` asks for it on the next connection
    if (this.#socket.isStream) return this.#giveUp(GIVEN_UP); // it is asked for everything at its beginning
    this.#outbox.push(...messages);
    this.#flush();
  }

  /** Send what is asked for, not faster than it is taken. */
  #flush() {
    while (this.#socket?.readyState === 1 && this.#outbox.length) {
      const now = Date.now();
      if (this.#free > now + BURST * APART_MS) {
        this.#later(APART_MS, () => this.#flush());
        return;
      }
      this.#free = Math.max(this.#free, now) + APART_MS;
      this.#socket.send(JSON.stringify(this.#outbox.shift()));
    }
  }

  #later(ms, act) {
    const timer = setTimeout(() => (this.#timers.delete(timer), act()), ms);
    this.#timers.add(timer);
    return timer;
  }

  #cancel(timer) {
    clearTimeout(timer);
    this.#timers.delete(timer);
  }

  #rouse() {
    const wake = this.#wake;
    this.#wake = null;
    wake?.();
  }
}

function silenced(socket) {
  socket.onopen = socket.onmessage = socket.onclose = socket.onerror = socket.onalive = socket.onrefused = null;
  return socket;
}

function subscription(topic, from) {
  return from === undefined ? { type: "subscribe", event: topic } : { type: "subscribe", event: topic, from };
}

/** The claim `exp` of a JWT in seconds since 1970, which only the service can verify; null when it says none. */
export function expiryOf(token) {
  try {
    const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    const { exp } = JSON.parse(atob(payload));
    return typeof exp === "number" ? exp : null;
  } catch {
    return null;
  }
}

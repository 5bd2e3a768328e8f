/**
 * News of the service for this tab. One tab of a browser holds the connection and tells the
 * others; where tabs cannot find each other (plain http to another host) each holds its own.
 */

import { v1 } from "./api";
import { live } from "./live.svelte";
import { poll } from "./resource.svelte";
import type { AlertNews, RunNews } from "./schema";
import { listen, Refused } from "./sse";

export type News =
  | { event: "run.update"; data: RunNews }
  | { event: "alert.update"; data: AlertNews }
  | { event: "resync" | "up" | "lost" };

type Hear = (news: News) => void;
/** What tabs tell each other. `want` answers `roll`; the holder of the connection says the rest. */
type Word =
  | { kind: "want"; tab: string; project: string; topics: string[] }
  | { kind: "bye"; tab: string }
  | { kind: "roll" }
  | { kind: "beat" }
  | { kind: "told"; project: string; news: News };

const NAME = "gradwarden.stream";
const ROLL_MS = 20_000;
const RETRY_LEAST_MS = 1000;
const RETRY_MOST_MS = 30_000;

/** The connection for the topics of one project; reopened when they change. */
class Line {
  #topics = "";
  #lastId: string | null = null;
  #abort: AbortController | null = null;
  up = false;

  constructor(
    readonly project: string,
    readonly say: (news: News) => void,
    readonly beat: () => void,
  ) {}

  listenTo(topics: string[]): void {
    const text = topics.sort().join();
    if (text === this.#topics) return;
    this.#topics = text;
    this.#abort?.abort();
    this.#abort = null;
    if (text) void this.#run((this.#abort = new AbortController()).signal);
  }

  async #run(signal: AbortSignal): Promise<void> {
    let pause = RETRY_LEAST_MS;
    const url = v1("stream", { topics: this.#topics, project: this.project });
    while (!signal.aborted) {
      let wait = pause;
      try {
        await listen(url, this.#lastId, signal, {
          opened: () => {
            pause = RETRY_LEAST_MS;
            this.#set(true);
          },
          beat: this.beat,
          message: ({ id, event, data }) => {
            this.#lastId = id;
            this.say({ event, data } as News);
          },
        });
      } catch (cause) {
        if (signal.aborted) return;
        if (cause instanceof Refused) wait = Math.max(wait, (cause.after ?? 0) * 1000);
      }
      if (signal.aborted) return;
      this.#set(false);
      await new Promise((resolve) => setTimeout(resolve, wait * (0.75 + Math.random() / 2)));
      pause = Math.min(pause * 2, RETRY_MOST_MS);
    }
  }

  #set(up: boolean): void {
    if (up === this.up) return;
    this.up = up;
    this.say({ event: up ? "up" : "lost" });
  }
}

class Stream {
  readonly #tab = Math.random().toString(36).slice(2);
  readonly #hearers = new Map<string, Set<Hear>>(); // by project and topic, of this tab
  readonly #channel: BroadcastChannel | null = null;
  readonly #up = new Set<string>();
  /** Of the tab that holds the connection: what every tab wants, and when it last said so. */
  #wants: Map<string, { project: string; topics: string[]; at: number }> | null = null;
  #lines = new Map<string, Line>();

  constructor() {
    if (!navigator.locks || !("BroadcastChannel" in globalThis)) {
      this.#lead();
      return;
    }
    this.#channel = new BroadcastChannel(NAME);
    this.#channel.onmessage = ({ data }: MessageEvent<Word>) => this.#hear(data);
    addEventListener("pagehide", () => this.#post({ kind: "bye", tab: this.#tab }));
    addEventListener("pageshow", () => this.#tell());
    // Held until the tab closes; then the next tab's turn comes.
    void navigator.locks.request(NAME, () => {
      this.#lead();
      return new Promise<void>(() => {});
    });
  }

  /** Whether news of the project arrive now. */
  up(project: string | null): boolean {
    return this.#up.has(project ?? "");
  }

  /** Hear what is said of `topic` until the returned function is called. */
  join(project: string | null, topic: string, hear: Hear): () => void {
    const key = `${project ?? ""} ${topic}`;
    const hearers = this.#hearers.get(key) ?? new Set();
    this.#hearers.set(key, hearers.add(hear));
    this.#tell();
    return () => {
      hearers.delete(hear);
      if (!hearers.size && this.#hearers.get(key) === hearers) this.#hearers.delete(key);
      this.#tell();
    };
  }

  /** Say what this tab wants: to whoever holds the connection, which may be itself. */
  #tell(): void {
    // A tab shows one project at a time; while it changes, the newer one counts.
    const keys = [...this.#hearers.keys()].map((key) => key.split(" "));
    const project = keys.length ? keys[keys.length - 1][0] : "";
    const topics = keys.filter(([of]) => of === project).map(([, topic]) => topic);
    this.#hear({ kind: "want", tab: this.#tab, project, topics });
    this.#post({ kind: "want", tab: this.#tab, project, topics });
  }

  #post(word: Word): void {
    this.#channel?.postMessage(word);
  }

  #lead(): void {
    this.#wants = new Map();
    this.#tell();
    this.#post({ kind: "roll" });
    setInterval(() => {
      const dead = Date.now() - 3 * ROLL_MS; // a background tab may answer once a minute
      for (const [tab, want] of this.#wants!) if (want.at < dead && tab !== this.#tab) this.#wants!.delete(tab);
      this.#connect();
      this.#post({ kind: "roll" });
    }, ROLL_MS);
  }

  #hear(word: Word): void {
    if (word.kind === "roll") this.#tell();
    else if (word.kind === "beat") live.heard();
    else if (word.kind === "told") this.#pass(word.project, word.news);
    else if (this.#wants) {
      if (word.kind === "bye") this.#wants.delete(word.tab);
      else {
        this.#wants.set(word.tab, { project: word.project, topics: word.topics, at: Date.now() });
        const line = this.#lines.get(word.project);
        if (line?.up && word.tab !== this.#tab) this.#post({ kind: "told", project: word.project, news: { event: "up" } });
      }
      queueMicrotask(() => this.#connect());
    }
  }

  /** Open, change or close lines so that they carry what is wanted. */
  #connect(): void {
    const wants = [...this.#wants!.values()];
    for (const project of new Set([...wants.map((want) => want.project), ...this.#lines.keys()])) {
      const topics = new Set(wants.flatMap((want) => (want.project === project ? want.topics : [])));
      let line = this.#lines.get(project);
      if (!line) {
        line = new Line(
          project,
          (news) => {
            this.#pass(project, news);
            this.#post({ kind: "told", project, news });
          },
          () => {
            live.heard();
            this.#post({ kind: "beat" });
          },
        );
        this.#lines.set(project, line);
      }
      line.listenTo([...topics]);
    }
  }

  #pass(project: string, news: News): void {
    if (news.event === "up") {
      if (this.#up.has(project)) return;
      this.#up.add(project);
    } else if (news.event === "lost") this.#up.delete(project);
    for (const [key, hearers] of this.#hearers) {
      const [of, topic] = key.split(" ");
      if (of !== project || ("data" in news && news.data.topic !== topic)) continue;
      for (const hear of hearers) hear(news);
    }
  }
}

let stream: Stream | null = null;

/** Between two looks while news arrive: a line that broke without a sign is noticed by then. */
const SLOW_MS = 30_000;

/**
 * Keep something current: `tick` looks at all of it, now, after a gap and now and then; `told`
 * hears what changed in between. Without news `tick` comes every `ms`. Returns the way to stop.
 */
export function follow(
  project: string | null,
  topic: string,
  ms: number,
  tick: () => Promise<void> | void,
  told: (news: News) => void,
): () => void {
  const news = (stream ??= new Stream());
  let stop = poll(news.up(project) ? SLOW_MS : ms, tick);
  const leave = news.join(project, topic, (heard) => {
    if (heard.event === "up" || heard.event === "lost") {
      stop();
      stop = poll(heard.event === "up" ? SLOW_MS : ms, tick, heard.event === "lost");
    } else if (document.hidden) return; // it looks when it is seen again
    else if (heard.event === "resync") void tick();
    else told(heard);
  });
  return () => {
    stop();
    leave();
  };
}

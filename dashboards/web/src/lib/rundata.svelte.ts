/**
 * Everything that a run's page shows, and how it stays current: news say that there are new
 * steps, and only these are fetched. The past is read anew where it changed: a new attempt
 * redoes steps, and the end of a run settles them.
 */

import { getBytes, getJson, v1 } from "./api";
import { joinEvents, joinHeat, joinSeries, missing, widthOf, type Part } from "./grow";
import { decode, type Matrix } from "./heat/decode";
import { Resource } from "./resource.svelte";
import { router } from "./router.svelte";
import type { AlertList, Diagnosis, EventList, RunDetail, RunLine, SeriesFace } from "./schema";
import { follow, type News } from "./stream";
import type { View } from "./view.svelte";

const COLUMNS = 2000;
const PHASE_COLUMNS = 500;
const AGAIN_COLUMNS = 500;
const MOST_AGAIN = 3;
const KEYS = ["loss", "lr", "grad_norm", "clip_norm"];
export const PHASES = ["data", "forward", "backward", "optimizer", "step"].map((phase) => ({
  key: `${phase}_seconds`, label: phase === "step" ? "in all" : phase,
}));
/** New steps are fetched at most this often. */
const PACE_MS = 1000;

export class RunData {
  readonly run = new Resource<RunDetail>(getJson);
  readonly alerts = new Resource<AlertList>(getJson);
  readonly events = new Resource<EventList>(getJson);
  readonly diagnosis = new Resource<Diagnosis>(getJson);
  readonly heat = new Resource<Matrix>(async (path, signal) => decode(await getBytes(path, signal)));
  readonly whole = new Resource<SeriesFace>(getJson);
  readonly detail = new Resource<SeriesFace>(getJson);
  readonly phases = new Resource<SeriesFace>(getJson);
  /** The same numbers of the run that is compared with this one. */
  readonly other = new Resource<SeriesFace>(getJson);
  /** What attempts told of steps that a later one did again, in the order of `again`. */
  readonly redone = new Resource<SeriesFace[]>((paths, signal) =>
    Promise.all(paths.split("\n").map((path) => getJson<SeriesFace>(path, signal))),
  );

  readonly base: string;
  readonly #project = $derived(router.project);
  readonly pinned = $derived.by(() => this.run.data?.layers.find((p) => p.i === this.view.url.row) ?? null);
  /** The range to ask for when the whole run does not fit its columns one by one. */
  readonly asked = $derived.by(() => {
    const bounds = this.view.bounds;
    const range = this.view.url.range;
    return bounds && range && bounds[1] - bounds[0] > COLUMNS ? range : null;
  });
  /** What the charts draw: the whole run, or the range by itself. */
  readonly series = $derived.by(() => (this.asked && this.detail.data?.keys.loss ? this.detail.data : this.whole.data));

  /** The newest attempts of which a later one did steps again. */
  readonly again = $derived.by(() =>
    (this.run.data?.attempts ?? []).filter((a) => a.superseded_after !== null && (a.last_step ?? -1) > a.superseded_after).slice(-MOST_AGAIN),
  );

  /** The newest step whose columns are here, and the attempt and status they were read under. */
  #seen: number | null = null;
  #under = "";
  /** The alerts that the diagnosis knows of. */
  #diagnosed = "";
  #busy: Promise<void> | null = null;

  constructor(
    readonly id: string,
    readonly view: View,
  ) {
    this.base = `runs/${encodeURIComponent(id)}`;
    $effect(() => {
      if (view.bounds) void this.heat.fetch(this.#heat(null));
    });
    $effect(() => {
      const path = this.#detail(null);
      if (view.bounds && path) void this.detail.fetch(path);
    });
    $effect(() => {
      const path = this.#phases(null);
      if (path) void this.phases.fetch(path);
    });
    $effect(() => {
      const run = view.url.other;
      const range = { from: this.asked?.[0], to: this.asked?.[1] };
      if (run) void this.other.fetch(v1(`runs/${encodeURIComponent(run)}/series`, { keys: KEYS.join(), ...range, points: COLUMNS, project: this.#project }));
    });
    $effect(() => {
      const paths = this.again.map((a) =>
        v1(`${this.base}/series`, {
          keys: KEYS.join(), attempt: a.ordinal, from: Math.max(a.first_step, a.superseded_after! + 1), to: a.last_step!,
          points: AGAIN_COLUMNS, project: this.#project,
        }),
      );
      if (paths.length) void this.redone.fetch(paths.join("\n"));
    });
    $effect(() => follow(router.project, `run:${id}`, 2000, () => this.look(), (news) => this.#told(news)));
    $effect(() => () => {
      view.stop();
      for (const resource of [this.run, this.alerts, this.events, this.diagnosis, this.heat, this.whole, this.detail, this.phases, this.other, this.redone]) {
        resource.stop();
      }
    });
  }

  /** The line of the run, its alerts, and whatever is new behind them. */
  async look(): Promise<void> {
    const query = { project: this.#project };
    await Promise.all([
      this.run.fetch(v1(this.base, query), true),
      this.alerts.fetch(v1("alerts", { ...query, run: this.id, state: "pending,firing,resolved", limit: 50 }), true),
    ]);
    // It is put together from alerts, and costs more than they do.
    const told = this.alerts.data?.items.map((alert) => `${alert.id} ${alert.state}`).join();
    const of = `${this.run.data?.status} ${told}`;
    if (of !== this.#diagnosed || this.diagnosis.error) {
      this.#diagnosed = of;
      void this.diagnosis.fetch(v1(`${this.base}/diagnosis`, query), true);
    }
    await this.#advance();
  }

  retryHeat(): void {
    void this.heat.fetch(this.#heat(null), true);
  }

  retryWhole(): void {
    void this.whole.fetch(this.#whole(null), true);
  }

  #told(news: News): void {
    const held = this.run.data;
    if (news.event !== "run.update" || !held) return;
    const line: RunLine | undefined = news.data.items.find((item) => item.run === this.id);
    if (!line) return;
    const same = (["status", "attempt", "health", "reason", "alerts"] as const).every(
      (key) => JSON.stringify(line[key]) === JSON.stringify(held[key]),
    );
    if (!same || !held.steps) return void this.look();
    const steps: [number, number] = [held.steps[0], Math.max(held.steps[1], line.step ?? 0)];
    this.run.take({ ...held, ...line, spark: held.spark, steps });
    void this.#advance();
  }

  /** Bring everything over steps up to the newest one; one at a time and not in haste. */
  #advance(): Promise<void> {
    return (this.#busy ??= this.#fetchNew().finally(() => {
      setTimeout(() => {
        this.#busy = null;
        if (this.run.data?.steps && this.run.data.steps[1] !== this.#seen && this.#seen !== null) void this.#advance();
      }, PACE_MS);
    }));
  }

  async #fetchNew(): Promise<void> {
    const run = this.run.data;
    if (!run?.steps) return;
    const [first, last] = run.steps;
    const under = `${run.attempt} ${run.status}`;
    const before = this.#seen;
    const anew = before === null || under !== this.#under || !!this.heat.error || !!this.whole.error;
    if (!anew && last === before) return;
    this.#seen = last;
    this.#under = under;
    this.view.bounds = [first, last + 1];
    const events = (from?: number) => v1(`${this.base}/events`, { from, project: this.#project });
    const [detail, phases] = [this.#detail(null), this.#phases(null)];
    if (anew) {
      await Promise.all([
        this.heat.fetch(this.#heat(null), true),
        this.whole.fetch(this.#whole(null), true),
        this.events.fetch(events(), true),
        detail && this.detail.fetch(detail, true),
        phases && this.phases.fetch(phases, true),
      ]);
      return;
    }
    const end = [first, before, last] as const;
    await Promise.all([
      this.asked || grow(this.heat, end, COLUMNS, (part) => this.#heat(part), joinHeat),
      grow(this.whole, end, COLUMNS, (part) => this.#whole(part), joinSeries),
      !this.asked && detail && grow(this.detail, end, COLUMNS, (part) => this.#detail(part)!, joinSeries),
      !this.asked && phases && grow(this.phases, end, PHASE_COLUMNS, (part) => this.#phases(part)!, joinSeries),
      this.events.extend(events(before), (held, more) => joinEvents(held, more, before)),
    ]);
  }

  #heat(part: Part | null): string {
    const query = { metric: this.view.url.metric, agg: "max", project: this.#project };
    const range = part ? { from: part.from, cols: part.count } : { from: this.asked?.[0], to: this.asked?.[1], cols: COLUMNS };
    return v1(`${this.base}/heatmap`, { ...query, ...range });
  }

  #whole(part: Part | null): string {
    const range = part ? { from: part.from, points: part.count } : { points: COLUMNS };
    return v1(`${this.base}/series`, { keys: KEYS.join(), ...range, project: this.#project });
  }

  #detail(part: Part | null): string | null {
    const row = this.pinned?.i;
    const keys = [...(this.asked ? KEYS : []), ...(row === undefined ? [] : [`layer:${row}:l2`, `layer:${row}:absmax`])];
    return keys.length ? this.#series(keys, part, COLUMNS) : null;
  }

  #phases(part: Part | null): string | null {
    if (!this.whole.data?.reported.includes("step_seconds")) return null;
    return this.#series(PHASES.map((phase) => phase.key), part, PHASE_COLUMNS);
  }

  #series(keys: string[], part: Part | null, points: number): string {
    const range = part ? { from: part.from, points: part.count } : { from: this.asked?.[0], to: this.asked?.[1], points };
    return v1(`${this.base}/series`, { keys: keys.join(), ...range, project: this.#project });
  }
}

/** Extend what is held by its new columns; where they are of another width, fetch it all. */
async function grow<T extends { step: number[] }>(
  resource: Resource<T>,
  [first, before, last]: readonly [number, number, number],
  limit: number,
  path: (part: Part | null) => string,
  join: (held: T, more: T) => T | null,
): Promise<void> {
  const part = missing(resource.data?.step ?? [], widthOf(first, before, limit), last, limit);
  const joined = part !== null && (await resource.extend(path(part), join));
  if (!joined) await resource.fetch(path(null), true);
}

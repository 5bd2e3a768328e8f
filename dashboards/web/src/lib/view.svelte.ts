/** What one run page shows: the step window and cursor that the heatmap and all charts share. */

import { router } from "./router.svelte";
import { hold, parseRunView, writeRunView, zoom, type RunView } from "./urlstate";

export type Range = [number, number];

export class View {
  /** Steps the run has, as [first, one past last]; null before step 1. */
  bounds = $state.raw<Range | null>(null);
  /** Step under the pointer or the keyboard's cell. */
  cursor = $state<number | null>(null);
  #moving = $state.raw<Range | null>(null);
  #timer = 0;

  /** The choices, as the URL has them. */
  readonly url = $derived<RunView>(parseRunView(router.search));
  /** True while the window follows the run. */
  readonly following = $derived(!this.#moving && !this.url.range);
  /** The window on screen, in steps: [from, to). */
  readonly range = $derived.by<Range>(() => {
    const bounds = this.bounds ?? [0, 1];
    const wanted = this.#moving ?? this.url.range;
    if (!wanted || wanted[0] >= bounds[1] || wanted[1] <= bounds[0]) return bounds;
    return [Math.max(wanted[0], bounds[0]), Math.min(wanted[1], bounds[1])];
  });

  /** A choice that Back undoes. */
  choose(patch: Partial<RunView>): void {
    router.query(writeRunView(router.search, { ...this.url, ...patch }), true);
  }

  /** Show `range`; the URL follows when the hand rests. */
  move(range: Range): void {
    clearTimeout(this.#timer);
    this.#moving = range;
    this.#timer = window.setTimeout(() => {
      const whole =
        this.bounds && range[0] <= this.bounds[0] && range[1] >= this.bounds[1] ? null : range;
      router.query(writeRunView(router.search, { ...this.url, range: whole }), false);
      this.#moving = null;
    }, 250);
  }

  zoom(factor: number, centre = this.cursor ?? undefined): void {
    if (this.bounds) this.move(zoom(this.range, this.bounds, factor, centre));
  }

  pan(steps: number): void {
    if (this.bounds) this.move(hold([this.range[0] + steps, this.range[1] + steps], this.bounds));
  }

  /** A window around one step, `half` steps to each side. */
  around(step: number, half: number): void {
    if (this.bounds) this.move(hold([step - half, step + half], this.bounds));
    this.cursor = step;
  }

  follow(): void {
    clearTimeout(this.#timer);
    this.#moving = null;
    this.choose({ range: null });
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

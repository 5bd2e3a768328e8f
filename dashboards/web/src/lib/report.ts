/** The report of a period, as `GET /v1/report` writes it. */

import * as f from "./format";

export interface Times {
  of: number;
  median: number | null;
  p90: number | null;
}

export interface Spent {
  name: string;
  gpu_hours: number;
  cost: number | null;
  incidents: number;
}

export interface Report {
  title: string;
  summary: string;
  since: string;
  until: string;
  incidents: number;
  incidents_before: number;
  pages: number;
  tickets: number;
  pages_acted: number;
  detect: Times;
  acknowledge: Times;
  resolve: Times;
  currency: string;
  wasted: Spent;
  held: Spent;
  causes: Spent[];
  owners: Spent[];
  models: { model: string; runs: number; converged: number; gpu_hours: number; gpu_hours_each: number | null; cost_each: number | null }[];
  runs: number;
  runs_watched: number;
  runs_partly: number;
  objectives: { name: string; left: number | null; sentence: string }[];
}

/** "1,234.50 USD"; a dash where no price is known. */
export function money(value: number | null, currency: string): string {
  if (value === null) return "–";
  return `${value.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })} ${currency}`;
}

/** "median 4m, 90 % within 12m (of 7)". */
export function spread(times: Times): string {
  if (!times.of || times.median === null) return "not known";
  return `${f.age(times.median)}${times.p90 === null ? "" : `, 90 % within ${f.age(times.p90)}`} (of ${times.of})`;
}

const DAY = 86_400_000;

/** From Monday to Monday (UTC), `back` whole weeks ago; 0 is the last whole one. */
export function week(now: number, back: number): [string, string] {
  const today = Math.floor(now / DAY) * DAY;
  const monday = today - ((new Date(today).getUTCDay() + 6) % 7) * DAY;
  const until = monday - back * 7 * DAY;
  return [new Date(until - 7 * DAY).toISOString(), new Date(until).toISOString()];
}

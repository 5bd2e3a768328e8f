/** How one person wants to see the dashboard; kept in this browser and nowhere else. */

import { COLOUR_MAPS, type ColourMap } from "./heat/maps";

export type Density = "compact" | "comfortable";
export type Zone = "local" | "utc";

interface Kept {
  density: Density;
  zone: Zone;
  /** Of heatmaps of values; those against a baseline have one of their own. */
  map: ColourMap;
}

const KEY = "gradwarden.prefs";
const FRESH: Kept = { density: "compact", zone: "local", map: "cividis" };

function read(): Kept {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    return {
      density: found.density === "comfortable" ? "comfortable" : "compact",
      zone: found.zone === "utc" ? "utc" : "local",
      map: COLOUR_MAPS.find((map) => map === found.map) ?? "cividis",
    };
  } catch {
    return FRESH; // storage may be forbidden, or hold another program's text
  }
}

class Prefs {
  kept = $state.raw<Kept>(read());

  constructor() {
    this.#show();
  }

  set(patch: Partial<Kept>): void {
    this.kept = { ...this.kept, ...patch };
    this.#show();
    try {
      localStorage.setItem(KEY, JSON.stringify(this.kept));
    } catch {
      // Forgotten with the page.
    }
  }

  #show(): void {
    document.documentElement.dataset.density = this.kept.density;
  }
}

export const prefs = new Prefs();

function parts(iso: string, options: Intl.DateTimeFormatOptions): string {
  const timeZone = prefs.kept.zone === "utc" ? "UTC" : undefined;
  return new Intl.DateTimeFormat("en-GB", { ...options, timeZone }).format(new Date(iso));
}

/** "03:12:04", in the zone of choice. */
export function clockTime(iso: string): string {
  return parts(iso, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

/** "21 Nov, 03:12", or the hour alone when it is today. */
export function dayTime(iso: string, now: number): string {
  const day = (at: string) => parts(at, { year: "numeric", month: "2-digit", day: "2-digit" });
  const hour = parts(iso, { hour: "2-digit", minute: "2-digit" });
  if (day(iso) === day(new Date(now).toISOString())) return hour;
  return `${parts(iso, { day: "numeric", month: "short" })}, ${hour}`;
}

export function zoneName(): string {
  return prefs.kept.zone === "utc" ? "UTC" : Intl.DateTimeFormat().resolvedOptions().timeZone;
}

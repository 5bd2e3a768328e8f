/** The routes over the History API. The location is the only source of what is shown. */

export type PageName =
  | "runs" | "run" | "oncall" | "alert" | "slos" | "silences" | "settings" | "report" | "embed";

export interface Route {
  page: PageName | null;
  /** Which run, alert or SLO, where the path names one. */
  id: string | null;
}

const ROUTES: [RegExp, PageName][] = [
  [/^\/(?:runs\/?)?$/, "runs"],
  [/^\/runs\/([^/]+)\/?$/, "run"],
  [/^\/oncall\/?$/, "oncall"],
  [/^\/alerts\/([^/]+)\/?$/, "alert"],
  [/^\/slos(?:\/([^/]+))?\/?$/, "slos"],
  [/^\/silences\/?$/, "silences"],
  [/^\/settings\/?$/, "settings"],
  [/^\/report\/?$/, "report"],
  [/^\/embed\/runs\/([^/]+)\/?$/, "embed"],
];

/** The page of a path; its name is null where nothing lives there. */
export function routeOf(path: string): Route {
  for (const [pattern, page] of ROUTES) {
    const match = pattern.exec(path);
    if (!match) continue;
    try {
      return { page, id: match[1] === undefined ? null : decodeURIComponent(match[1]) };
    } catch {
      break; // half an escape
    }
  }
  return { page: null, id: null };
}

class Router {
  path = $state(location.pathname);
  search = $state(location.search);
  readonly route = $derived(routeOf(this.path));

  constructor() {
    addEventListener("popstate", () => this.#read());
    document.addEventListener("click", (event) => this.#click(event));
  }

  get project(): string | null {
    return new URLSearchParams(this.search).get("project");
  }

  /** A link inside the dashboard; the chosen project goes along. */
  href(path: string): string {
    if (!this.project) return path;
    return `${path}${path.includes("?") ? "&" : "?"}project=${encodeURIComponent(this.project)}`;
  }

  go(url: string): void {
    history.pushState(null, "", url);
    this.#read();
    scrollTo(0, 0);
  }

  /** Change the query: `push` for a choice that Back should undo, else replace. */
  query(search: string, push: boolean): void {
    if (search === location.search) return;
    const url = location.pathname + search;
    if (push) history.pushState(null, "", url);
    else history.replaceState(null, "", url);
    this.#read();
  }

  /** One key of the query. */
  set(key: string, value: string | null, push = false): void {
    const q = new URLSearchParams(location.search);
    if (value) q.set(key, value);
    else q.delete(key);
    const text = q.toString();
    this.query(text ? `?${text}` : "", push);
  }

  #read(): void {
    this.path = location.pathname;
    this.search = location.search;
  }

  #click(event: MouseEvent): void {
    if (event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey)
      return;
    const link = (event.target as Element).closest("a");
    if (!link || link.target || link.origin !== location.origin) return;
    // Runbooks, /docs and downloads are the service's own pages.
    if (routeOf(link.pathname).page === null || link.hasAttribute("download")) return;
    event.preventDefault();
    if (link.href !== location.href) this.go(link.href);
  }
}

export const router = new Router();

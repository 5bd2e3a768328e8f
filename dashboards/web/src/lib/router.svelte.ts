/** Two routes over the History API. The location is the only source of what is shown. */

class Router {
  path = $state(location.pathname);
  search = $state(location.search);

  constructor() {
    addEventListener("popstate", () => this.#read());
    document.addEventListener("click", (event) => this.#click(event));
  }

  /** Name of the run when the path is /runs/NAME, else null. */
  get run(): string | null {
    const match = /^\/runs\/([^/]+)\/?$/.exec(this.path);
    try {
      return match ? decodeURIComponent(match[1]) : null;
    } catch {
      return null;
    }
  }

  get project(): string | null {
    return new URLSearchParams(this.search).get("project");
  }

  /** A link inside the dashboard; the chosen project goes along. */
  href(path: string): string {
    return this.project ? `${path}?project=${encodeURIComponent(this.project)}` : path;
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
    if (link.pathname !== "/" && !/^\/runs(\/|$)/.test(link.pathname)) return;
    event.preventDefault();
    this.go(link.href);
  }
}

export const router = new Router();

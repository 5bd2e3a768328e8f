/** Dark or light: the system's, unless chosen. Canvases ask here for their colours. */

type Choice = "system" | "dark" | "light";

export interface Palette {
  ground: string;
  panel: string;
  text: string;
  muted: string;
  grid: string;
  hatch: string;
  bad: string;
  edge: string;
  line: string[];
}

const PALETTES: Record<"dark" | "light", Palette> = {
  dark: {
    ground: "#101418", panel: "#171c22", text: "#e6e9ed", muted: "#9aa5b1", grid: "#262d36",
    hatch: "#2b333c", bad: "#ff2bd6", edge: "#ffffff",
    line: ["#56b4e9", "#e69f00", "#009e73", "#cc79a7"],
  },
  light: {
    ground: "#ffffff", panel: "#f6f7f9", text: "#1b2127", muted: "#5a6572", grid: "#e2e6ea",
    hatch: "#d5dae0", bad: "#ff2bd6", edge: "#000000",
    line: ["#0072b2", "#a86400", "#00795a", "#a5487b"],
  },
};

const KEY = "gradwarden.theme";

class Theme {
  choice = $state<Choice>((document.documentElement.dataset.theme as Choice) ?? "system");
  #system = $state<"dark" | "light">("dark");

  constructor() {
    const media = matchMedia("(prefers-color-scheme: light)");
    const read = () => (this.#system = media.matches ? "light" : "dark");
    media.addEventListener("change", read);
    read();
  }

  get name(): "dark" | "light" {
    return this.choice === "system" ? this.#system : this.choice;
  }

  get palette(): Palette {
    return PALETTES[this.name];
  }

  /** system -> dark -> light -> system */
  next(): void {
    this.set(this.choice === "system" ? "dark" : this.choice === "dark" ? "light" : "system");
  }

  set(choice: Choice): void {
    this.choice = choice;
    const root = document.documentElement;
    if (this.choice === "system") delete root.dataset.theme;
    else root.dataset.theme = this.choice;
    try {
      if (this.choice === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, this.choice);
    } catch {
      // A browser that forbids storage forgets the choice with the page.
    }
  }
}

export const theme = new Theme();

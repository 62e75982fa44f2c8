// The explorer: two pages, chosen by the address after #.

import { el } from "./dom.js";
import { stopAll, tell } from "./api.js";
import { lookPage } from "./look.js";
import { playPage } from "./play.js";

const PAGES = { look: ["Look inside", lookPage], play: ["By hand", playPage] };

async function open() {
  const chosen = location.hash.slice(1).split("/")[0];
  const name = PAGES[chosen] ? chosen : "look";
  const main = document.getElementById("main");
  delete document.documentElement.dataset.ready;
  main.ondragover = main.ondrop = null;
  const links = Object.entries(PAGES).map(([key, [title]]) => el("a", { href: "#" + key, "aria-current": key === name ? "page" : undefined }, title));
  document.getElementById("pages").replaceChildren(...links);
  try {
    await PAGES[name][1](main);
  } catch (error) {
    tell(main, error);
  }
  document.documentElement.dataset.ready = name;
}

document.getElementById("stop").addEventListener("click", stopAll);
addEventListener("hashchange", open);
open();

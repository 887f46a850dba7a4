// Asks for the page again every few seconds, while somebody looks at it, and puts in what has changed.
"use strict";

const EVERY = 4000;

async function look() {
  const trouble = document.getElementById("trouble");
  if (!document.hidden) {
    let said = "the server cannot be reached.";
    try {
      const reply = await fetch("/", { credentials: "same-origin", cache: "no-store" });
      if (!reply.ok) throw new Error((said = await reply.text()));
      const page = new DOMParser().parseFromString(await reply.text(), "text/html");
      const [before, now] = [document.querySelector("main"), page.querySelector("main")];
      if (before.innerHTML !== now.innerHTML) before.replaceWith(document.adoptNode(now));
      trouble.hidden = true;
    } catch {
      trouble.textContent = `The page is not up to date: ${said}`;
      trouble.hidden = false;
    }
  }
  setTimeout(look, EVERY);
}

setTimeout(look, EVERY);

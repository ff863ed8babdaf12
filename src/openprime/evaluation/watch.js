// Asks for what is new every two seconds, and puts it in the place of what is there.
"use strict";
(() => {
  const parts = document.getElementById("parts"), live = document.getElementById("live");
  let have = document.body.dataset.version;

  function put(html) {
    const next = document.createElement("template"), old = new Map(), open = new Map();
    next.innerHTML = html;
    const focused = parts.contains(document.activeElement) ? document.activeElement.textContent : null;
    for (const place of figures(parts)) old.set(place.dataset.name, place);
    for (const box of parts.querySelectorAll("details")) open.set(box.firstElementChild.textContent, box.open);
    for (const place of [...figures(next.content)]) {
      const known = old.get(place.dataset.name);
      if (!known) continue;
      known.dataset.figure = place.dataset.figure; // the drawing stays, and is changed
      known.setAttribute("aria-label", place.getAttribute("aria-label"));
      place.replaceWith(known);
    }
    for (const box of next.content.querySelectorAll("details")) box.open = open.get(box.firstElementChild.textContent) || false;
    for (const button of next.content.querySelectorAll("[data-run]")) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.run)));
    parts.replaceChildren(next.content);
    if (focused !== null) [...parts.querySelectorAll("a, button, summary")].find(node => node.textContent === focused)?.focus();
    drawAll(figures(parts));
  }

  async function ask() {
    try {
      const answer = await fetch(`update?have=${encodeURIComponent(have)}`);
      if (answer.status === 200) {
        const now = await answer.json();
        have = now.version;
        put(now.parts);
        Inspector.load(now.samples);
        live.textContent = `Live. Last change ${new Date().toLocaleTimeString()}.`;
      } else if (answer.status === 204) {
        if (live.dataset.lost) live.textContent = "Live.";
      } else live.textContent = await answer.text();
      delete live.dataset.lost;
    } catch {
      live.textContent = "openprime watch has ended: this is what it said last.";
      live.dataset.lost = "yes";
    }
    setTimeout(ask, 2000);
  }
  setTimeout(ask, 2000);
})();

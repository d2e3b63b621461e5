// Dragging an element by mouse, pen or finger. A finger drags by the grip; elsewhere it scrolls the page.

const FAR_ENOUGH = 6;
const EDGE = 60;

export function followDrag(element, { start, over, drop, cancel }) {
  let from = null; // where the pointer went down
  let isDragging = false;

  element.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.pointerType !== "mouse" && !event.target.closest(".grip"))) return;
    from = { x: event.clientX, y: event.clientY, scroll: scrollY };
    element.setPointerCapture(event.pointerId); // a fast pointer leaves the element before it has moved far enough
  });

  element.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (!isDragging) {
      if (Math.hypot(x, y) < FAR_ENOUGH) return;
      isDragging = true;
      element.classList.add("dragged");
      start();
    }
    if (event.clientY < EDGE) scrollBy(0, -12);
    if (event.clientY > innerHeight - EDGE) scrollBy(0, 12);
    element.style.transform = `translate(${x}px, ${y + scrollY - from.scroll}px)`;
    over(event.clientX, event.clientY);
  });

  function end(event) {
    const wasDragging = isDragging;
    from = null;
    isDragging = false;
    element.classList.remove("dragged");
    element.style.transform = "";
    return wasDragging && event.type !== "pointercancel" && event.type !== "lostpointercapture";
  }

  element.addEventListener("pointerup", (event) => {
    if (end(event)) drop(event.clientX, event.clientY);
  });
  for (const name of ["pointercancel", "lostpointercapture"]) {
    element.addEventListener(name, (event) => {
      if (isDragging) {
        end(event);
        cancel();
      }
      from = null;
    });
  }
  element.addEventListener("keydown", (event) => {
    if (isDragging && event.key === "Escape") {
      end({ type: "pointercancel" });
      cancel();
    }
  });
}

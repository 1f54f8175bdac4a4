"""What the package knows of devices: how much work to hand over at once, which number formats, which cards there are.

profile                      how much work a device is handed at once
processor                    the maker of the CPU
precision                    number formats, and when torch uses them
transfers                    copies that neither side waits for longer than it has to
allocator                    the setting of torch's allocator
transfers                    numbers between CPU and GPU without a wait: sent ahead, or read late
cards                        GPUs and their rates
as_on_gpu counting           what a step does on a GPU, counted without one
roofline fusion collectives  how long that takes: kernels, compiled or not, and what processes send to one another

May import nothing of the package but `errors`.
"""

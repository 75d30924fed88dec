"""A guest's life in libvirt-python's asyncio form: events are awaited, streams are told of."""
import asyncio
import sys

import libvirt
import libvirtaio


async def main():
    libvirtaio.virEventRegisterAsyncIOImpl()
    connection = libvirt.open()
    heard = asyncio.Queue()
    numbers = [connection.domainEventRegisterAny(
        None, number, lambda conn, domain, *rest: heard.put_nowait((number_of, domain.name(), rest[:-1])), None)
        for number, number_of in ((libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, "lifecycle"),)]
    print(connection.getType(), connection.listDomainsID(), connection.isAlive())
    with open(sys.argv[1], encoding="utf-8") as file:
        domain = connection.defineXML(file.read())
    print("defined", domain.name(), [one.name() for one in connection.listAllDomains()])
    domain.create()
    print(domain.state(), domain.info()[:4], connection.numOfDomains())
    domain.suspend()
    domain.resume()
    print(sorted(key for key in connection.getAllDomainStats()[0][1] if key.startswith(("state", "block"))))
    stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
    try:
        domain.screenshot(stream, 0)
    except libvirt.libvirtError as error:
        print("screenshot", error.get_error_code(), error)
    domain.destroy()
    domain.undefine()
    while True:
        event = await asyncio.wait_for(heard.get(), 30)
        print(event)
        if event[2][0] == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            break
    for number in numbers:
        connection.domainEventDeregisterAny(number)
    print("closed", connection.close())


asyncio.run(main())
